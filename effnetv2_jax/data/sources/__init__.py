"""Data sets for classification: splits whose examples can be read from anywhere.

``registry.get_source`` opens a data set by name. Every other module here is one kind of data set.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from effnetv2_jax.runtime.errors import UsageError

# TensorFlow refuses once the process has used it. Its settings then stay as they are.
with contextlib.suppress(RuntimeError):
    # Accelerators belong to JAX.
    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
    # Images are prepared one per thread. With more threads than this, XLA splits up every small
    # loop of an augmentation, and distributing the parts costs more than computing them.
    tf.config.threading.set_intra_op_parallelism_threads(1)

MAX_LABELS = 32
"""The largest number of labels of one example, in data sets with several labels per example."""

Example = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of a split in a fixed order, numbered from 0.

    Reading has two steps. ``records`` finds the raw records, and ``parse`` makes an example of one.
    The pipeline calls ``parse`` in parallel, and masks an example for which it fails.

    An example has ``image``, a string to decode or uint8 [height, width, 3], and ``label``, int64
    of shape [], or [MAX_LABELS] filled up with -1 in data sets with several labels per example.

    Attributes:
        size: The number of examples.
        records: A function of (first, count), int64 scalars, that returns a tf.data.Dataset of
            ``count`` consecutive records.
        parse: A function that makes an example of a record.
        describe: A function of an example's number that returns what a person needs to find the
            example, such as its file.
        fingerprint: A function that returns two texts. The first depends on the examples and their
            order, as far as names show them, and the second on their sizes. Neither depends on
            where the data lie. None means that the descriptions of the examples are enough.
        labels: A function that returns the labels of all examples, int64 [size], in no time. None
            means that ``sampling.labels_of`` has to read the examples.
        random_access: Set if reading a single example costs no more than reading one of many in a
            row. Records are then the numbers of their examples. It is not set for large files of
            records on a disk or in a bucket.
    """

    size: int
    records: Callable[[tf.Tensor, tf.Tensor], tf.data.Dataset]
    parse: Callable[[tf.Tensor], Example]
    describe: Callable[[int], str]
    fingerprint: Callable[[], tuple[str, str]] | None = None
    random_access: bool = False
    labels: Callable[[], np.ndarray] | None = None

    @classmethod
    def of_examples(
        cls,
        size: int,
        get: Callable[[tf.Tensor], Example],
        describe: Callable[[int], str] = "example {}".format,
        fingerprint: Callable[[], tuple[str, str]] | None = None,
        labels: Callable[[], np.ndarray] | None = None,
    ) -> "Split":
        """Returns a split with random access.

        Args:
            size, describe, fingerprint, labels: As the attributes.
            get: A function of an example's number, int64 [], that returns the example.
        """
        return cls(
            size,
            lambda first, count: tf.data.Dataset.range(first, first + count),
            get,
            describe,
            fingerprint,
            random_access=True,
            labels=labels,
        )

    def identity(self) -> dict[str, Any]:
        """Returns what tells the split from others: ``examples``, ``names`` and ``sizes``."""
        names, sizes = (self.fingerprint or (lambda: (self.describe(0), "")))()
        return {"examples": self.size, "names": names, "sizes": sizes}

    def read(self, first: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
        """Returns a dataset of ``count`` consecutive examples; int64 scalars."""
        return self.records(first, count).map(self.parse)


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set for classification.

    Attributes:
        name: The name that the user gave.
        class_names: One name per label.
        split: A function of a split's name. It raises UsageError for an unknown name.
        label_shape: The shape of an example's label, () or (MAX_LABELS,).

    Raises:
        UsageError: For a name of a class with a line break in it.
    """

    name: str
    class_names: tuple[str, ...]
    split: Callable[[str], Split]
    label_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in self.class_names:
            if name and name.splitlines() != [name]:
                raise UsageError(
                    f"the class {name!r} of {self.name} has a line break in its name, but files "
                    "of class names have one on each line: rename it"
                )

    @property
    def num_classes(self) -> int:
        """The number of labels."""
        return len(self.class_names)


def digest(parts: Iterable[bytes]) -> str:
    """Returns a short text that stands for some bytes in their order."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        hashed.update(len(part).to_bytes(8) + part)
    return hashed.hexdigest()


def fill_up(labels: tf.Tensor) -> tf.Tensor:
    """Fills up the labels of one example, int64 [count], with -1 to int64 [MAX_LABELS].

    Raises:
        tf.errors.InvalidArgumentError: When it runs, for more than MAX_LABELS labels.
    """
    count = tf.size(labels)
    few = tf.debugging.Assert(
        count <= MAX_LABELS,
        [f"an example may have at most {MAX_LABELS} labels, but one has", count],
    )
    with tf.control_dependencies([few]):
        missing = tf.maximum(MAX_LABELS - count, 0)
        return tf.ensure_shape(tf.pad(labels, [[0, missing]], constant_values=-1), [MAX_LABELS])
