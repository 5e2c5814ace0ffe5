"""Coloured noise for trying things out. The class sets the colour, so there is much to learn."""

import tensorflow as tf

from effnetv2_jax.data.sources import Example, Source, Split
from effnetv2_jax.runtime.errors import unknown_name

_EXAMPLES = {"train": 8192, "test": 500}
_CLASSES = 1000
_SIZE = 64


def synthetic_source() -> Source:
    """Returns a data set of 1,000 classes. Example i of a split is the same in every run."""
    return Source("synthetic", tuple(f"class {i}" for i in range(_CLASSES)), _split)


def _split(name: str) -> Split:
    if name not in _EXAMPLES:
        raise unknown_name("split of synthetic", name, _EXAMPLES)
    # Test examples continue the count, so that no image is in both splits.
    first = 0 if name == "train" else _EXAMPLES["train"]
    describe = f"example {{}} of {name} of synthetic".format
    return Split.of_examples(_EXAMPLES[name], lambda index: _example(first + index), describe)


def _example(number: tf.Tensor) -> Example:
    label = tf.random.stateless_uniform((), (number, 0), 0, _CLASSES, tf.int64)
    color = tf.random.stateless_uniform((3,), (label, 1), 0, 256, tf.int32)
    noise = tf.random.stateless_uniform((_SIZE, _SIZE, 3), (number, 2), -64, 64, tf.int32)
    return {"image": tf.cast(tf.clip_by_value(color + noise, 0, 255), tf.uint8), "label": label}
