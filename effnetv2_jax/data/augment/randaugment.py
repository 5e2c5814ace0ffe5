"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719): a few uniformly drawn operations in a row."""

import math

import tensorflow as tf

from effnetv2_jax.data.augment.operations import NUM_DRAWS, OPS, apply_ops


def rand_augment(
    image: tf.Tensor,
    seed: tf.Tensor,
    *,
    magnitude: float,
    num_layers: int = 2,
    translate_const: float = 100.0,
    cutout_const: float = 40.0,
) -> tf.Tensor:
    """Applies ``num_layers`` randomly chosen operations to an image, one after the other.

    Args:
        image: uint8 [height, width, 3] of static shape.
        seed: The seed of the draw, int32 or int64 [2]. The same seed gives the same result.
        magnitude: The strength of the operations, at least 0. The nominal top of the scale is 10,
            but larger and fractional values are allowed.
        num_layers: The number of operations, at least 0, which returns the image unchanged.
        translate_const, cutout_const: As in ``images.Augmentation``, in px.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: For a negative magnitude or num_layers.
    """
    if not 0 <= magnitude < math.inf:
        raise ValueError(f"magnitude is {magnitude}, but it must be a finite number >= 0.")
    if num_layers < 0:
        raise ValueError(f"num_layers is {num_layers}, but it must be >= 0.")
    if num_layers == 0:
        return image
    table = [(op, op.argument(magnitude, translate_const, cutout_const)) for op in OPS]
    return apply_ops(image, table, *_draw(seed, num_layers))


def _draw(seed: tf.Tensor, num_layers: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws indices into ``OPS`` and random numbers, as ``apply_ops`` takes them."""
    draws = tf.random.stateless_uniform([num_layers, 1 + NUM_DRAWS], seed)
    return tf.cast(draws[:, 0] * len(OPS), tf.int32), draws[:, 1:]
