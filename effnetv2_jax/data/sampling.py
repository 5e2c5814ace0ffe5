"""How often each class is seen: as often as it has examples, or all of them equally often."""

import dataclasses

import numpy as np
import tensorflow as tf
from absl import logging

from effnetv2_jax.data.order import Order, Use, for_use, make_seed, permuted
from effnetv2_jax.data.sources import Source
from effnetv2_jax.runtime.errors import UsageError, unknown_name

SAMPLERS = ("shuffled", "balanced")
# Examples that are read at a time when only their labels are wanted.
_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class BalancedOrder(Order):
    """An order in which the classes take turns, for splits with random access.

    K classes share the stream. Of every K positions from a multiple of K on, each class has one,
    and which one is random. Each class goes through all its examples, in a new random order every
    time. The example at a position is a function of (seed, position), as in ``Order``.

    Attributes:
        members: The numbers in the split of all examples, class after class, int64 [size].
        counts: The number of examples of each class that has any, int64 [classes].
    """

    members: tf.Tensor
    counts: tf.Tensor

    def epoch(self, position: tf.Tensor | int) -> tf.Tensor:
        kind, turn = self._turn(position)
        return turn // self.counts[kind]

    def locate(self, position: tf.Tensor | int) -> tf.Tensor:
        kind, turn = self._turn(position)
        count = self.counts[kind]
        seed = for_use(make_seed(self.seed, turn // count, kind), Use.EXAMPLES)
        begin = tf.cumsum(self.counts, exclusive=True)[kind]
        return self.members[begin + permuted(turn % count, seed, count)]

    def _turn(self, position: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the class at a position, and how many examples of it came before."""
        position = tf.convert_to_tensor(position, tf.int64)
        classes = len(self.counts)
        turn = position // classes
        seed = for_use(make_seed(self.seed, turn, 0), Use.CLASSES)
        return permuted(position % classes, seed, classes), turn


def make_order(source: Source, split: str, seed: int, sampler: str = "shuffled") -> Order:
    """Returns the order in which a run reads a split.

    Args:
        source: The data set.
        split: The name of its split.
        seed: The seed of the run.
        sampler: A name in ``SAMPLERS``. ``shuffled`` sees every example once per epoch. With
            ``balanced``, all classes are seen equally often, so that an epoch sees the examples of
            small classes several times and not all of those of large ones.

    Raises:
        UsageError: For an unknown sampler, and for a split that cannot be balanced.
    """
    if sampler not in SAMPLERS:
        raise unknown_name("data.sampler", sampler, SAMPLERS)
    examples = source.split(split)
    if sampler == "shuffled":
        return Order(examples, seed)
    if not examples.random_access:
        raise UsageError(
            f"data.sampler 'balanced' needs examples that can be read one by one, but split "
            f"{split!r} of {source.name} lies in large files of records: use "
            "class_weights='balanced' instead"
        )
    labels = labels_of(source, split)
    assert len(labels) == examples.size  # in memory and in folders, every label can be read
    counts = np.bincount(labels)
    members = np.argsort(labels, kind="stable")
    return BalancedOrder(examples, seed, tf.constant(members), tf.constant(counts[counts > 0]))


def count_classes(source: Source, split: str) -> np.ndarray:
    """Returns the number of examples of each class in a split, int64 [classes].

    Raises:
        UsageError: If examples have several labels.
    """
    return np.bincount(labels_of(source, split), minlength=source.num_classes)


def labels_of(source: Source, split: str) -> np.ndarray:
    """Returns the labels of all examples of a split in their order, int64 [size].

    Folders know them. Other data sets are read once, which takes long if they are large. Records
    that cannot be read are left out, and the log names them.

    Raises:
        UsageError: If examples have several labels.
    """
    examples = source.split(split)
    if source.label_shape:
        raise UsageError(
            f"the examples of {source.name} have several labels each, so that its classes cannot "
            "be balanced"
        )
    if examples.labels:
        return examples.labels()
    logging.info("reading the labels of the %d examples of %s", examples.size, source.name)
    read = examples.read(tf.constant(0, tf.int64), tf.constant(examples.size, tf.int64))
    labels = read.map(lambda example: example["label"]).ignore_errors(log_warning=True)
    rows = labels.batch(_ROWS).as_numpy_iterator()
    return np.concatenate([np.asarray(x, np.int64) for x in rows])
