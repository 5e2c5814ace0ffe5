"""The order of examples (permutations, shares of processes, starting anywhere) and their seeds."""

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf

from effnetv2_jax.data import order
from effnetv2_jax.data.order import Order, Use, for_use, make_seed
from effnetv2_jax.data.sources import Split
from effnetv2_jax.runtime.errors import UsageError

WINDOW = 32
# Less than a window, a multiple of it, and three with a tail.
SIZES = {"tail_only": 21, "windows_only": 64, "both": 3 * WINDOW + 13}
EPOCHS = 4


@pytest.fixture
def small_windows(monkeypatch):
    """Windows small enough for tests: 8 lanes of chunks of 4."""
    for name, value in {"LANES": 8, "CHUNK": 4, "WINDOW": WINDOW}.items():
        monkeypatch.setattr(order, name, value)


@pytest.fixture(params=["get", "read"])
def kind(request, small_windows):
    """How a split's examples are read: one by one, or in windows."""
    return request.param


def make_split(kind, size, on_read=lambda index: index):
    def parse(index):
        return {"image": tf.strings.as_string(index), "label": 10 * index}

    def records(first, count):
        return tf.data.Dataset.range(first, first + count).map(on_read)

    if kind == "get":
        return Split.of_examples(size, lambda index: parse(on_read(index)))
    return Split(size, records, parse, str)


def make_order(kind, size, seed=7):
    return Order(make_split(kind, size), seed)


def stream(order, count, first=0, process_index=0, process_count=1):
    """(position, id) of a share's first examples, which are checked to be those of their ids."""
    elements = order.elements(first, process_index, process_count)
    found = []
    for example in elements.map(order.fetch, num_parallel_calls=2).take(count).as_numpy_iterator():
        assert set(example) == {"image", "label", "position", "id", "seed"}
        assert example["image"] == str(example["id"]).encode()
        assert example["label"] == 10 * example["id"]
        found.append((int(example["position"]), int(example["id"])))
    assert len(found) == count
    return found


def located(order, count, first=0):
    """The ids at positions by `locate`."""
    positions = tf.data.Dataset.range(first, first + count)
    ids = positions.map(order.locate, num_parallel_calls=2).batch(count)
    return next(ids.as_numpy_iterator())


@functools.cache
def whole_stream(kind, size):
    """What one process reads in EPOCHS epochs; only used with small windows."""
    return stream(make_order(kind, size), EPOCHS * size)


@pytest.fixture(params=SIZES.values(), ids=SIZES)
def size(request):
    return request.param


def test_every_epoch_is_another_permutation(kind, size):
    full = whole_stream(kind, size)
    assert [position for position, _ in full] == list(range(EPOCHS * size))
    epochs = np.array([index for _, index in full]).reshape(EPOCHS, size)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(size))
    # Two permutations agree at one place on average.
    for one, other in itertools.combinations([np.arange(size), *epochs], 2):
        assert (one == other).sum() <= 8


def test_locate_says_what_is_read(kind, size):
    ids = [index for _, index in whole_stream(kind, size)]
    np.testing.assert_array_equal(located(make_order(kind, size), EPOCHS * size), ids)
    # Eagerly and of a Python number too.
    assert make_order(kind, size).locate(size + 3).numpy() == ids[size + 3]


def test_many_epochs_are_permutations(kind, size):
    """So that the tail has been at either end of the split."""
    epochs = located(make_order(kind, size), 30 * size).reshape(30, size)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (30, 1)))


def test_another_seed_is_another_order(kind, size):
    first, again = (located(make_order(kind, size, seed), 2 * size) for seed in (7, 7))
    np.testing.assert_array_equal(first, again)
    for seed in (0, 8, 7 + 2**31):
        assert (located(make_order(kind, size, seed), 2 * size) == first).sum() <= 12, seed


def test_starts_anywhere(kind, size):
    full = whole_stream(kind, size)
    for first in (1, WINDOW, WINDOW + 5, size - 3, 2 * size, 2 * size + 14):
        expected = full[first : first + 40]
        assert stream(make_order(kind, size), len(expected), first) == expected, first


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_processes_share_the_stream(kind, size, process_count):
    full = whole_stream(kind, size)
    for begin in (0, WINDOW // process_count + 3):
        first = begin * process_count
        count = (min(first + 2 * size, len(full)) - first) // process_count
        shares = [
            stream(make_order(kind, size), count, first, process, process_count)
            for process in range(process_count)
        ]
        for process, share in enumerate(shares):
            positions = [position for position, _ in share]
            last = first + count * process_count
            assert positions == list(range(first + process, last, process_count))
        merged = sorted(itertools.chain(*shares))
        assert merged == full[first : first + count * process_count]


@pytest.mark.parametrize("process_count", [3, 6, 128])
def test_refuses_process_counts_that_do_not_divide_the_lanes(process_count):
    for kind in ("get", "read"):
        with pytest.raises(UsageError, match=rf"must divide 64, got {process_count}$"):
            make_order(kind, 100).elements(0, 0, process_count)


def test_tail_is_another_part_of_the_split_in_every_epoch(small_windows):
    size = SIZES["both"]
    epochs = located(make_order("read", size), 40 * size).reshape(40, size)
    tails = np.sort(epochs[:, 3 * WINDOW :], axis=1)
    # In a row, but for its order, and between two chunks.
    np.testing.assert_array_equal(tails, tails[:, :1] + np.arange(13))
    assert (tails[:, 0] % 4 == 0).all()
    # 40 of 25 equally likely places are at 20 distinct ones on average.
    assert len(np.unique(tails[:, 0])) >= 14
    assert (np.diff(epochs[:, 3 * WINDOW :], axis=1) == 1).mean() < 0.2


def test_neighbours_come_from_different_chunks(small_windows):
    size = SIZES["windows_only"]
    chunks = located(make_order("read", size), size).reshape(-1, 8) // 4
    assert all(len(set(lanes)) == 8 for lanes in chunks)
    # A window's chunks stay the same to its end.
    np.testing.assert_array_equal(chunks[:4], np.tile(chunks[0], (4, 1)))
    np.testing.assert_array_equal(chunks[4:], np.tile(chunks[4], (4, 1)))


def test_epochs_do_not_repeat(small_windows):
    # What tells one permutation from another must be enough of the seed.
    size = 1000
    for kind in ("get", "read"):
        order = make_order(kind, size)
        begins = tf.data.Dataset.range(200).flat_map(
            lambda epoch: tf.data.Dataset.range(epoch * size, epoch * size + 6)
        )
        ids = next(begins.map(order.locate).batch(1200).as_numpy_iterator()).reshape(200, 6)
        assert len(np.unique(ids, axis=0)) == 200, kind


@pytest.mark.parametrize("size", [3, 4500])
def test_with_windows_of_their_real_size(size):
    order = make_order("read", size)
    found = stream(order, 2 * size)
    assert [position for position, _ in found] == list(range(2 * size))
    ids = [index for _, index in found]
    np.testing.assert_array_equal(np.sort(np.reshape(ids, (2, size))), [np.arange(size)] * 2)
    begin = max(size - 500, 0)
    count = min(size, 1000)
    np.testing.assert_array_equal(located(order, count, begin), ids[begin : begin + count])
    begin = size // 4 * 2
    share = stream(order, size // 2, begin, 1, 2)
    assert share == found[begin + 1 : begin + 1 + 2 * len(share) : 2]


def counting_split(kind, size):
    """A split, and the list of the examples that have been read."""
    reads = []

    def on_read(index):
        def count(index):
            reads.append(int(index))
            return index

        index = tf.py_function(count, [index], tf.int64)
        return tf.ensure_shape(index, [])

    return make_split(kind, size, on_read), reads


@pytest.mark.parametrize("offset", [3 * WINDOW + 5, 2 * WINDOW + 30])
def test_starting_late_does_not_read_what_is_skipped(kind, offset):
    size = SIZES["both"]
    split, reads = counting_split(kind, size)
    first = 5 * size + offset
    # Of the epoch's windows only those from the first position's on, and of the tail nothing.
    skipped = offset // WINDOW * WINDOW if offset < 3 * WINDOW else offset
    ids = located(Order(make_split(kind, size), 7), size, 5 * size)
    counted = Order(split, 7)
    for position, example in enumerate(counted.elements(first).map(counted.fetch).take(3), first):
        assert example["id"].numpy() == ids[position - 5 * size]
    if kind == "get":
        np.testing.assert_array_equal(reads, ids[offset : offset + 3])
    else:
        # What is read ahead will be used (and may belong to the next epoch after a tail).
        before = reads[: size - skipped]
        assert set(before) <= set(ids[skipped:])
        assert set(before) >= set(ids[offset : offset + 3])
        assert offset - skipped < WINDOW


@pytest.fixture(params=["get", "read"])
def epochs_of_1000(request, small_windows):
    return located(make_order(request.param, 1000), 5000).reshape(5, 1000)


def test_positions_look_random(epochs_of_1000):
    places = np.arange(1000)
    # The mean displacement of a permutation is n / 3. Chunks of 4 move together, so its standard
    # deviation over an epoch is at most 2 * 0.24 n / sqrt(n), and 7 over 5.
    assert np.abs(epochs_of_1000 - places).mean() == pytest.approx(1000 / 3, abs=35)
    for epoch in epochs_of_1000:
        # Independent but for chunks: five standard deviations.
        assert abs(np.corrcoef(places, epoch)[0, 1]) < 5 * 2 / 1000**0.5
    for one, other in itertools.pairwise(epochs_of_1000):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 * 2 / 1000**0.5


def test_permutations_are_uniform(small_windows):
    # Of the examples and of the chunks: each of 8 at each place equally often. A permutation's
    # counts are bound in both directions: 49 degrees of freedom, times 8 / 7.
    @tf.function
    def permutation(number):
        seed = make_seed(7, tf.cast(number, tf.int64), 0)
        return order._permuted(tf.range(8, dtype=tf.int64), seed, 8)

    permuted = np.array([permutation(tf.constant(number)).numpy() for number in range(2000)])
    counts = np.stack([np.bincount(column, minlength=8) for column in permuted.T])
    chi_square = ((counts - 250) ** 2).sum() / 250 * 7 / 8
    assert chi_square < 49 + 5 * 98**0.5


RUNS = (-1, 0, 1, 2, 42, 10**6, 2**31 - 1)


def test_seeds_differ_by_run_epoch_index_and_use():
    seeds = [
        tuple(for_use(make_seed(run, tf.constant(epoch, tf.int64), index), use).numpy().tolist())
        for run, epoch, index, use in itertools.product(RUNS, (0, 1, 350), (0, 1, 1281166), Use)
    ]
    assert len(set(seeds)) == len(seeds) == len(RUNS) * 3 * 3 * len(Use)


def test_runs_stay_apart_for_more_epochs_than_anyone_trains():
    firsts = sorted(int(make_seed(run, tf.constant(0, tf.int64), 0)[0]) for run in range(1000))
    gaps = np.diff(np.array(firsts, object))
    assert min(gaps) > 10**12 * len(Use)
    assert firsts[0] + 2**64 - firsts[-1] > 10**12 * len(Use)


def test_neighbouring_seeds_give_unrelated_numbers():
    epoch = tf.constant(3, tf.int64)

    @tf.function
    def drawn(index):
        by_index = tf.random.stateless_uniform([], make_seed(0, epoch, index))
        by_epoch = tf.random.stateless_uniform([], make_seed(0, epoch + index, 0))
        uses = [for_use(make_seed(0, epoch, index), use) for use in (Use.CROP, Use.FLIP)]
        return tf.stack(
            [by_index, by_epoch, *[tf.random.stateless_uniform([], seed) for seed in uses]]
        )

    count = 2000
    numbers = np.array([drawn(tf.constant(i, tf.int64)).numpy() for i in range(count)]).T
    limit = 5 / count**0.5  # five standard deviations of a correlation of independent numbers
    for column in numbers[:2]:
        assert abs(np.corrcoef(column[:-1], column[1:])[0, 1]) < limit
        # Uniform: of each tenth as many, within five standard deviations.
        assert (
            abs(np.histogram(column, 10, (0, 1))[0] - count / 10).max() < 5 * (count * 0.09) ** 0.5
        )
    assert abs(np.corrcoef(numbers)[np.triu_indices(4, 1)]).max() < limit
