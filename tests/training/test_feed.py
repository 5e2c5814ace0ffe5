"""The thread that takes batches: in order, a few ahead, and never in the way of an end."""

import itertools
import threading
import time

import pytest

from effnetv2_jax.training.preparation import Feed


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def counted(taken):
    """0, 1, 2, … for ever; what has been taken is in the list."""
    for i in itertools.count():
        taken.append(i)
        yield {"i": i}


def test_batches_come_in_order_and_then_none():
    feed = Feed({"i": i} for i in range(20))
    assert [feed.next()["i"] for _ in range(20)] == list(range(20))
    assert feed.next() is None


def test_it_begins_at_once_and_stays_a_few_ahead():
    taken = []
    feed = Feed(counted(taken))
    # Two that wait, and one in the hand.
    wait_until(lambda: len(taken) == 3)
    time.sleep(0.3)
    assert len(taken) == 3
    feed.next()
    wait_until(lambda: len(taken) == 4)
    feed.close()


def test_an_error_comes_where_its_batch_would():
    def batches():
        yield {"i": 0}
        yield {"i": 1}
        raise ValueError("broken")

    feed = Feed(batches())
    assert [feed.next()["i"], feed.next()["i"]] == [0, 1]
    with pytest.raises(ValueError, match="broken") as caught:
        feed.next()
    # Where it was raised is to be seen.
    assert caught.traceback[-1].name == "batches"


def test_whoever_gives_up_need_not_wait_for_a_stalled_input():
    stalled, wishes = threading.Event(), []

    def batches():
        stalled.wait(60)
        yield {"i": 0}

    feed = Feed(batches())
    threading.Timer(0.2, wishes.append, [True]).start()
    started = time.monotonic()
    assert feed.next(lambda: bool(wishes)) is None
    assert time.monotonic() - started < 5
    # The input goes on, and so may its user.
    stalled.set()
    assert feed.next()["i"] == 0


def test_who_has_given_up_gets_none_even_where_there_is_one():
    feed = Feed({"i": i} for i in range(5))
    assert feed.next(lambda: True) is None
    assert feed.next()["i"] == 0


def test_after_closing_nothing_more_is_taken_and_the_thread_ends():
    taken, before = [], set(threading.enumerate())
    feed = Feed(counted(taken))
    wait_until(lambda: len(taken) == 3)
    (thread,) = set(threading.enumerate()) - before
    assert thread.name == "feed"
    feed.close()
    thread.join(5)
    assert not thread.is_alive()
    assert len(taken) == 3


def test_a_stalled_input_does_not_keep_the_process_alive():
    before = set(threading.enumerate())
    stalled = threading.Event()
    Feed(iter(stalled.wait, True))
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon
    stalled.set()
