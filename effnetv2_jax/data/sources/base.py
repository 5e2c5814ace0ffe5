"""What a data set is to the pipeline: splits whose examples can be read from anywhere."""

import contextlib
import dataclasses
from collections.abc import Callable

import tensorflow as tf

# Too late where the process has used TensorFlow before; it has taken then what it takes.
with contextlib.suppress(RuntimeError):
    # Accelerators belong to JAX.
    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
    # Images are prepared one a thread. With more than this, XLA splits up every small loop of an
    # augmentation, and handing out the parts costs more than they do.
    tf.config.threading.set_intra_op_parallelism_threads(1)

MAX_LABELS = 32
"""So many labels an example may have where it has several."""

Example = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of a split in a fixed order, numbered from 0.

    An example has ``image``, a string to decode or uint8 [height, width, 3], and ``label``, int64
    of shape [] or, where examples have several labels, [MAX_LABELS] filled up with -1.

    Attributes:
        size: number of examples.
        read: of (first, count), int64 scalars, → tf.data.Dataset of ``count`` examples in a row.
        get: of (index), an int64 scalar, → that example; None where an example alone costs much
            more to read than one of a row, as in a file of records far away.
        describe: of (index) → what a person needs to find that example, such as its file.
    """

    size: int
    read: Callable[[tf.Tensor, tf.Tensor], tf.data.Dataset]
    get: Callable[[tf.Tensor], Example] | None
    describe: Callable[[int], str]

    @classmethod
    def of_examples(
        cls,
        size: int,
        get: Callable[[tf.Tensor], Example],
        describe: Callable[[int], str] = "example {}".format,
    ) -> "Split":
        """A split whose examples cost the same alone as in a row."""

        def read(first: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
            return tf.data.Dataset.range(first, first + count).map(get)

        return cls(size=size, read=read, get=get, describe=describe)


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set for classification.

    Attributes:
        name: as the user gave it.
        class_names: one a label.
        split: of (name) → Split; raises UsageError for an unknown name.
        label_shape: of an example's label, () or (MAX_LABELS,).
    """

    name: str
    class_names: tuple[str, ...]
    split: Callable[[str], Split]
    label_shape: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)
