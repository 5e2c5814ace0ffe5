"""Named data sets: where the examples of a split come from, in which order, and how many.

A new data set is a function that returns a ``Source``, and a line in ``SOURCES``.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf
import tensorflow_datasets as tfds

from effnetv2_jax.data.digits import Digits
from effnetv2_jax.errors import UsageError, unknown_name

# Accelerators belong to JAX.
tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set for classification.

    Attributes:
        name: as in ``SOURCES``.
        class_names: one a label.
        num_examples: of (split) → number of examples in it.
        read: of (split) → tf.data.Dataset of ``id`` int64 (position in the split), ``image`` (a
            string to decode, or uint8 [height, width, 3]) and ``label`` int64, in a fixed order.
    """

    name: str
    class_names: tuple[str, ...]
    num_examples: Callable[[str], int]
    read: Callable[[str], tf.data.Dataset]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def get_source(name: str, data_dir: str | None = None) -> Source:
    """Opens a data set, preparing it first where it is not on disk yet.

    Args:
        name: a name in ``SOURCES``.
        data_dir: where TFDS keeps its files; None means its default (``TFDS_DATA_DIR`` or
            ``~/tensorflow_datasets``).

    Raises:
        UsageError: for an unknown name, or a data_dir that cannot be written.
    """
    if name not in SOURCES:
        raise unknown_name("data set", name, SOURCES)
    return SOURCES[name](data_dir)


def _digits(data_dir: str | None) -> Source:
    try:
        builder = Digits(data_dir=data_dir)
        builder.download_and_prepare()
    except OSError as error:
        raise UsageError(f"data_dir {data_dir!r} cannot be written: {error}") from error
    return _tfds_source("digits", builder)


def _tfds_source(name: str, builder: tfds.core.DatasetBuilder) -> Source:
    def split_info(split: str) -> tfds.core.SplitInfo:
        try:
            return builder.info.splits[split]
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"unknown split {split!r} of {name}: allowed are {', '.join(builder.info.splits)} "
                "and slices of them such as 'train[:80%]'"
            ) from error

    def read(split: str) -> tf.data.Dataset:
        split_info(split)
        dataset = builder.as_dataset(
            split=split,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(
                interleave_cycle_length=1, try_autocache=False, add_tfds_id=False
            ),
        )
        return dataset.enumerate().map(
            lambda index, example: {
                "id": index,
                "image": example["image"],
                "label": example["label"],
            }
        )

    return Source(
        name=name,
        class_names=tuple(builder.info.features["label"].names),
        num_examples=lambda split: split_info(split).num_examples,
        read=read,
    )


_SYNTHETIC_EXAMPLES = {"train": 8192, "test": 500}
_SYNTHETIC_CLASSES = 1000
_SYNTHETIC_SIZE = 64


def _synthetic(data_dir: str | None) -> Source:
    """Coloured noise for trying things out: the class sets the colour, so there is much to learn.

    ImageNet's 1,000 classes; example i of a split is the same in every run.
    """
    del data_dir

    def num_examples(split: str) -> int:
        if split not in _SYNTHETIC_EXAMPLES:
            raise unknown_name("split of synthetic", split, _SYNTHETIC_EXAMPLES)
        return _SYNTHETIC_EXAMPLES[split]

    def example(index: tf.Tensor) -> dict[str, tf.Tensor]:
        label = tf.random.stateless_uniform((), (index, 0), 0, _SYNTHETIC_CLASSES, tf.int64)
        color = tf.random.stateless_uniform((3,), (label, 1), 0, 256, tf.int32)
        shape = (_SYNTHETIC_SIZE, _SYNTHETIC_SIZE, 3)
        noise = tf.random.stateless_uniform(shape, (index, 2), -64, 64, tf.int32)
        image = tf.cast(tf.clip_by_value(color + noise, 0, 255), tf.uint8)
        return {"id": index, "image": image, "label": label}

    def read(split: str) -> tf.data.Dataset:
        # Test examples continue the count, so that no image is in both splits.
        first = 0 if split == "train" else _SYNTHETIC_EXAMPLES["train"]
        return tf.data.Dataset.range(num_examples(split)).map(
            lambda index: example(index + first) | {"id": index}
        )

    return Source(
        name="synthetic",
        class_names=tuple(f"class {i}" for i in range(_SYNTHETIC_CLASSES)),
        num_examples=num_examples,
        read=read,
    )


SOURCES: dict[str, Callable[[str | None], Source]] = {"digits": _digits, "synthetic": _synthetic}
