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


def streams(order, count, starts, process_count=1):
    """For each (first position, process), the (position, id) of the share's first examples.

    One graph reads them all, and the examples are checked to be those of their ids.
    """
    elements = tf.data.Dataset.from_tensor_slices(np.array(starts, np.int64)).flat_map(
        lambda start: order.elements(start[0], start[1], process_count).take(count)
    )
    examples = elements.map(order.fetch, num_parallel_calls=2).batch(len(starts) * count)
    (found,) = examples.as_numpy_iterator()
    assert set(found) == {"image", "label", "position", "id", "seed"}
    assert found["image"].astype(int).tolist() == found["id"].tolist()
    assert found["label"].tolist() == (10 * found["id"]).tolist()
    pairs = list(zip(found["position"].tolist(), found["id"].tolist(), strict=True))
    assert len(pairs) == len(starts) * count
    return [pairs[i : i + count] for i in range(0, len(pairs), count)]


def located(order, positions):
    """The ids at positions by `locate`."""
    ids = tf.data.Dataset.from_tensor_slices(np.array(positions)).map(
        order.locate, num_parallel_calls=2
    )
    return next(ids.batch(len(positions)).as_numpy_iterator())


@functools.cache
def whole_stream(kind, size):
    """What one process reads in EPOCHS epochs; only used with small windows."""
    (pairs,) = streams(make_order(kind, size), EPOCHS * size, [(0, 0)])
    return pairs


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
    np.testing.assert_array_equal(located(make_order(kind, size), range(EPOCHS * size)), ids)
    # Eagerly and of a Python number too.
    assert make_order(kind, size).locate(size + 3).numpy() == ids[size + 3]


def test_many_epochs_are_permutations(kind):
    """So that the tail has been at either end of the split."""
    size = SIZES["both"]
    epochs = located(make_order(kind, size), range(30 * size)).reshape(30, size)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (30, 1)))


def test_another_seed_is_another_order(kind):
    size = SIZES["both"]
    first = [index for _, index in whole_stream(kind, size)][: 2 * size]
    for seed in (0, 8, 7 + 2**31):
        other = located(make_order(kind, size, seed), range(2 * size))
        assert (other == first).sum() <= 12, seed


def test_starts_anywhere(kind, size):
    full = whole_stream(kind, size)
    firsts = (1, WINDOW, WINDOW + 5, size - 3, 2 * size, 2 * size + 14)
    found = streams(make_order(kind, size), 28, [(first, 0) for first in firsts])
    for first, part in zip(firsts, found, strict=True):
        assert part == full[first : first + 28], first


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_stream(kind, size, process_count):
    full = whole_stream(kind, size)
    count = min(2 * size, EPOCHS * size - 44) // process_count
    firsts = [begin * process_count for begin in (0, WINDOW // process_count + 3)]
    starts = [(first, process) for first in firsts for process in range(process_count)]
    shares = streams(make_order(kind, size), count, starts, process_count)
    for (first, process), share in zip(starts, shares, strict=True):
        last = first + count * process_count
        assert share == full[first + process : last : process_count]


@pytest.mark.parametrize("process_count", [3, 6, 128])
def test_refuses_process_counts_that_do_not_divide_the_lanes(process_count):
    for kind in ("get", "read"):
        with pytest.raises(UsageError, match=rf"must divide 64, got {process_count}$"):
            make_order(kind, 100).elements(0, 0, process_count)


def test_tail_is_another_part_of_the_split_in_every_epoch(small_windows):
    size = SIZES["both"]
    positions = [epoch * size + j for epoch in range(40) for j in range(3 * WINDOW, size)]
    unsorted = located(make_order("read", size), positions).reshape(40, 13)
    tails = np.sort(unsorted, axis=1)
    # In a row, but for its order, and between two chunks.
    np.testing.assert_array_equal(tails, tails[:, :1] + np.arange(13))
    assert (tails[:, 0] % 4 == 0).all()
    # 40 of 25 equally likely places are at 20 distinct ones on average.
    assert len(np.unique(tails[:, 0])) >= 14
    assert (np.diff(unsorted, axis=1) == 1).mean() < 0.2


def test_neighbours_come_from_different_chunks(small_windows):
    size = SIZES["windows_only"]
    chunks = located(make_order("read", size), range(size)).reshape(-1, 8) // 4
    assert all(len(set(lanes)) == 8 for lanes in chunks)
    # A window's chunks stay the same to its end.
    np.testing.assert_array_equal(chunks[:4], np.tile(chunks[0], (4, 1)))
    np.testing.assert_array_equal(chunks[4:], np.tile(chunks[4], (4, 1)))


def test_epochs_do_not_repeat(small_windows):
    # What tells one permutation from another must be enough of the seed.
    size = 1000
    for kind in ("get", "read"):
        positions = [epoch * size + j for epoch in range(200) for j in range(6)]
        ids = located(make_order(kind, size), positions).reshape(200, 6)
        assert len(np.unique(ids, axis=0)) == 200, kind


@pytest.mark.parametrize("size", [3, 4500])
def test_with_windows_of_their_real_size(size):
    order = make_order("read", size)
    (found,) = streams(order, 2 * size, [(0, 0)])
    assert [position for position, _ in found] == list(range(2 * size))
    ids = [index for _, index in found]
    np.testing.assert_array_equal(np.sort(np.reshape(ids, (2, size))), [np.arange(size)] * 2)
    some = slice(max(size - 100, 0), max(size - 100, 0) + min(size, 200))
    np.testing.assert_array_equal(located(order, range(2 * size)[some]), ids[some])
    begin = size // 4 * 2
    (share,) = streams(order, size // 2, [(begin, 1)], 2)
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
    ids = located(Order(make_split(kind, size), 7), range(5 * size, 6 * size))
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
    return located(make_order(request.param, 1000), range(5000)).reshape(5, 1000)


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
    def permutation(number):
        return order.permuted(tf.range(8, dtype=tf.int64), make_seed(7, number, 0), 8)

    permuted = next(tf.data.Dataset.range(2000).map(permutation).batch(2000).as_numpy_iterator())
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
    firsts = sorted(int(make_seed(run, tf.constant(0, tf.int64), 0)[0]) for run in range(300))
    gaps = np.diff(np.array(firsts, object))
    assert min(gaps) > 10**12 * len(Use)
    assert firsts[0] + 2**64 - firsts[-1] > 10**12 * len(Use)


def test_neighbouring_seeds_give_unrelated_numbers():
    epoch = tf.constant(3, tf.int64)

    def drawn(index):
        by_index = tf.random.stateless_uniform([], make_seed(0, epoch, index))
        by_epoch = tf.random.stateless_uniform([], make_seed(0, epoch + index, 0))
        uses = [for_use(make_seed(0, epoch, index), use) for use in (Use.CROP, Use.FLIP)]
        return tf.stack(
            [by_index, by_epoch, *[tf.random.stateless_uniform([], seed) for seed in uses]]
        )

    count = 2000
    drawn_numbers = tf.data.Dataset.range(count).map(drawn).batch(count)
    numbers = next(drawn_numbers.as_numpy_iterator()).T
    limit = 5 / count**0.5  # five standard deviations of a correlation of independent numbers
    for column in numbers[:2]:
        assert abs(np.corrcoef(column[:-1], column[1:])[0, 1]) < limit
        # Uniform: of each tenth as many, within five standard deviations.
        assert (
            abs(np.histogram(column, 10, (0, 1))[0] - count / 10).max() < 5 * (count * 0.09) ** 0.5
        )
    assert abs(np.corrcoef(numbers)[np.triu_indices(4, 1)]).max() < limit
