"""Where the random numbers of a run's input come from: (seed of the run, use, epoch, index).

TensorFlow's stateless operations scramble the two words of a seed (with Philox) before they draw,
so seeds need to be distinct, not random: a sum says what they are for, where a chain of hashes
would cost several operations an image.
"""

import enum

import tensorflow as tf


class Use(enum.IntEnum):
    """What random numbers are for."""

    EXAMPLES = 0
    CHUNKS = 1
    WITHIN = 2
    TAIL = 3
    CROP = 4
    FLIP = 5
    AUGMENT = 6


# 2⁶⁴ over the golden ratio, as int64: whole multiples lie far apart, so that no two runs with
# seeds of a reasonable size share a first word within 10¹² epochs.
_SPREAD = 0x9E3779B97F4A7C15 - 2**64


def make_seed(run_seed: int, epoch: tf.Tensor, index: tf.Tensor | int) -> tf.Tensor:
    """A seed of an epoch's example or chunk, to be made one of a ``Use`` by ``for_use``.

    Args:
        run_seed: of the run.
        epoch: int64 [].
        index: of the example or the chunk, int64 [] or an int.

    Returns:
        int64 [2].
    """
    # Wrapped around by hand: Python's integers do not overflow, int64's do.
    first = (run_seed * _SPREAD + 2**63) % 2**64 - 2**63
    return tf.stack([first + epoch * len(Use), tf.cast(index, tf.int64)])


def for_use(seed: tf.Tensor, use: Use) -> tf.Tensor:
    """The seed int64 [2] of one use."""
    return seed + tf.constant((use, 0), tf.int64)
