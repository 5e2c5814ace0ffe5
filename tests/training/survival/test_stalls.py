"""A run that stands still says where, once per stall."""

import contextlib
import json
import logging
import threading
import time

import pytest

from effnetv2_jax.progressive import Stage
from effnetv2_jax.training.observing.status import Status
from effnetv2_jax.training.survival.stalls import Watch

STALL_SECONDS = 0.2


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def watching(**keywords):
    watch = Watch(STALL_SECONDS, **keywords)
    try:
        yield watch
    finally:
        watch.stop()


def test_a_stall_is_told_once_with_what_every_thread_does(caplog, capfd):
    stalls = []

    def waits_for_an_input_that_does_not_come():
        wait_until(lambda: stalls)

    with (
        caplog.at_level(logging.INFO, logger="absl"),
        watching(on_stall=lambda: stalls.append(1)) as watch,
    ):
        watch.beat("training step 17")
        waits_for_an_input_that_does_not_come()
        time.sleep(2 * STALL_SECONDS)
        assert stalls == [1]
        assert "while training step 17; all threads:" in caplog.text
        assert capfd.readouterr().err.count("in waits_for_an_input_that_does_not_come") == 1
        assert "the run goes on" not in caplog.text
        watch.beat("training step 18")
        assert "the run goes on: training step 18" in caplog.text
        # And once more, when it stands still again.
        wait_until(lambda: len(stalls) == 2)
    assert caplog.text.count("nothing has happened for") == 2


def test_a_run_that_moves_is_left_in_peace(caplog):
    with watching(on_stall=lambda: pytest.fail("it moved")) as watch:
        for step in range(10):
            watch.beat(f"training step {step}")
            time.sleep(STALL_SECONDS / 4)
    assert caplog.text == ""


def test_after_its_end_a_run_is_watched_no_longer(caplog):
    with watching():
        pass
    time.sleep(2 * STALL_SECONDS)
    assert caplog.text == ""
    assert "watch" not in [thread.name for thread in threading.enumerate()]


def test_a_stall_is_in_the_status_until_the_run_goes_on(tmp_path):
    stage = Stage(0, 0, 10, 100, 5.0, 0.0, 0.0, 0.1, 10)
    status = Status(tmp_path, (stage,))
    status.trained(5, stage, 100.0)

    def state():
        return json.loads((tmp_path / "status.json").read_text())["state"]

    with watching(on_stall=lambda: status.update(state="stalled")) as watch:
        wait_until(lambda: state() == "stalled")
        watch.beat("training step 7")
        status.trained(6, stage, 100.0)
        assert state() == "training"
