"""The balanced sampler: classes take turns, and the order is a pure function of the position."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from effnetv2_jax.data import sampling
from effnetv2_jax.data.sources import MAX_LABELS, Source, Split
from effnetv2_jax.runtime.errors import UsageError

# Classes 0, 2, 3 and 4 of five; class 1 has no example, and class 2 has one.
LABELS = np.random.default_rng(0).permutation([0] * 40 + [2] + [3] * 7 + [4] * 12)
CLASSES = 4


def source_of(labels=LABELS, *, known=False, random_access=True, label_shape=()):
    def get(index):
        return {
            "image": tf.strings.as_string(index),
            "label": tf.gather(tf.constant(labels), index),
        }

    split = Split.of_examples(len(labels), get, labels=(lambda: labels) if known else None)
    if not random_access:
        split = Split(len(labels), split.records, get, str)
    names = ("a", "b", "c", "d", "e")
    return Source("made up", names, lambda name: split, label_shape)


def read(order, first, count, process=0, processes=1):
    """Returns the columns of the examples that one process reads."""
    elements = order.elements(first, process, processes).take(count).map(order.fetch)
    return next(elements.batch(count).as_numpy_iterator())


@pytest.fixture(scope="module")
def stream():
    return read(sampling.make_order(source_of(), "train", 7, "balanced"), 0, 800)


def test_every_class_has_one_turn_in_each_round(stream):
    turns = stream["label"].reshape(-1, CLASSES)
    np.testing.assert_array_equal(np.sort(turns), np.tile([0, 2, 3, 4], (200, 1)))
    # In every order about equally often: 200 rounds of 24 orders.
    assert len({tuple(turn) for turn in turns}) == 24


def test_a_class_shows_all_its_examples_before_one_comes_again(stream):
    for label in (0, 2, 3, 4):
        members = np.flatnonzero(label == LABELS)
        ids = stream["id"][stream["label"] == label]
        rounds = ids[: len(ids) // len(members) * len(members)].reshape(-1, len(members))
        np.testing.assert_array_equal(np.sort(rounds), np.tile(members, (len(rounds), 1)))
        if len(members) > 2:
            assert len({tuple(ids) for ids in rounds.tolist()}) == len(rounds)


def test_an_example_that_comes_again_is_augmented_otherwise(stream):
    assert len({tuple(seed) for seed in stream["seed"].tolist()}) == 800
    assert collections.Counter(stream["id"].tolist())[np.flatnonzero(LABELS == 2)[0]] == 200


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_any_number_of_processes_reads_the_same_from_any_position_on(stream, processes):
    order = sampling.make_order(source_of(known=True), "train", 7, "balanced")
    first, count = 164, 64
    for process in range(processes):
        part = read(order, first, count // processes, process, processes)
        rows = slice(first + process, first + count, processes)
        for name in ("id", "label", "position", "seed"):
            np.testing.assert_array_equal(part[name], stream[name][rows])
    # What the log calls the examples of a step with a loss that is not finite.
    assert [int(order.locate(first + i)) for i in range(5)] == stream["id"][first:][:5].tolist()


def test_another_seed_is_another_order(stream):
    other = read(sampling.make_order(source_of(), "train", 8, "balanced"), 0, 800)
    assert (other["id"] == stream["id"]).mean() < 0.5


def test_classes_are_counted_whether_the_labels_are_known_or_have_to_be_read():
    for known in (False, True):
        for random_access in (False, True):
            source = source_of(known=known, random_access=random_access)
            assert sampling.count_classes(source, "train").tolist() == [40, 0, 1, 7, 12]


@pytest.mark.parametrize(
    ("source", "sampler", "message"),
    [
        (source_of(), "balancd", "unknown data.sampler 'balancd': did you mean balanced?"),
        (source_of(random_access=False), "balanced", "use class_weights='balanced' instead"),
        (source_of(label_shape=(MAX_LABELS,)), "balanced", "have several labels each"),
    ],
)
def test_what_cannot_be_sampled_is_one_sentence(source, sampler, message):
    with pytest.raises(UsageError, match=message):
        sampling.make_order(source, "train", 0, sampler)
