"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719): some operations, drawn uniformly, in a row."""

import functools
import math

import tensorflow as tf

from effnetv2_jax.data.ops import OPS


def choose_ops(seed: tf.Tensor, num_layers: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws each layer's operation.

    Args:
        seed: int32 or int64 [2].
        num_layers: Number of layers, at least 1.

    Returns:
        Indices into `OPS`, int32 [num_layers], and each layer's own seed, [num_layers, 2] of
        `seed`'s dtype.
    """
    seeds = tf.random.split(seed, num_layers + 1)
    indices = tf.random.stateless_uniform(
        [num_layers], seeds[0], minval=0, maxval=len(OPS), dtype=tf.int32
    )
    return indices, seeds[1:]


# There is no Python control flow on tensors here for AutoGraph to convert, only time to lose.
@tf.autograph.experimental.do_not_convert
def rand_augment(
    image: tf.Tensor,
    seed: tf.Tensor,
    *,
    magnitude: float,
    num_layers: int = 2,
    translate_const: float = 100.0,
    cutout_const: float = 40.0,
) -> tf.Tensor:
    """Applies `num_layers` randomly chosen operations to an image, one after the other.

    Args:
        image: uint8 [H, W, 3]; H and W may be dynamic.
        seed: int32 or int64 [2], as for `tf.random.stateless_uniform`; the same seed gives the same
            result.
        magnitude: Strength of the operations, at least 0. The scale's nominal top is 10, but
            larger and fractional values are allowed.
        num_layers: Number of operations applied, at least 0; 0 returns the image unchanged.
        translate_const: Pixels that an image is translated by at magnitude 10.
        cutout_const: Half the side of the cut out square at magnitude 10, in pixels.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: If magnitude or num_layers is negative, or the image is not uint8.
    """
    if not 0 <= magnitude < math.inf:
        raise ValueError(f"magnitude is {magnitude}, but it must be a finite number >= 0.")
    if num_layers < 0:
        raise ValueError(f"num_layers is {num_layers}, but it must be >= 0.")
    image = tf.convert_to_tensor(image)
    if image.dtype != tf.uint8:
        raise ValueError(f"The image's dtype is {image.dtype.name}, but it must be uint8.")
    if num_layers == 0:
        return image

    image = tf.ensure_shape(image, [None, None, 3])
    shape = image.shape
    arguments = [op.argument(magnitude, translate_const, cutout_const) for op in OPS]
    indices, seeds = choose_ops(seed, num_layers)
    for layer in range(num_layers):
        branches = [
            functools.partial(op.apply, image, argument, seeds[layer])
            for op, argument in zip(OPS, arguments, strict=True)
        ]
        image = tf.switch_case(indices[layer], branches)
        # Branches with slices and dynamic shapes lose what is known statically.
        image = tf.ensure_shape(image, shape)
    return image
