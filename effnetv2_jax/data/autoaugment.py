"""AutoAugment (Cubuk et al. 2018, arXiv:1805.09501): one of 25 pairs of operations.

EfficientNetV1 and V2-B0…B3 were trained with the policy that their TPU code calls v0, which is not
the one the paper prints for ImageNet.
"""

import functools
from typing import NamedTuple

import tensorflow as tf

from effnetv2_jax.data.ops import OPS


class Step(NamedTuple):
    """An operation by its name in `ops.OPS`, its probability, and its magnitude from 0 to 10."""

    name: str
    probability: float
    magnitude: int


SubPolicy = tuple[Step, ...]

POLICY_V0: tuple[SubPolicy, ...] = (
    (Step("Equalize", 0.8, 1), Step("ShearY", 0.8, 4)),
    (Step("Color", 0.4, 9), Step("Equalize", 0.6, 3)),
    (Step("Color", 0.4, 1), Step("Rotate", 0.6, 8)),
    (Step("Solarize", 0.8, 3), Step("Equalize", 0.4, 7)),
    (Step("Solarize", 0.4, 2), Step("Solarize", 0.6, 2)),
    (Step("Color", 0.2, 0), Step("Equalize", 0.8, 8)),
    (Step("Equalize", 0.4, 8), Step("SolarizeAdd", 0.8, 3)),
    (Step("ShearX", 0.2, 9), Step("Rotate", 0.6, 8)),
    (Step("Color", 0.6, 1), Step("Equalize", 1.0, 2)),
    (Step("Invert", 0.4, 9), Step("Rotate", 0.6, 0)),
    (Step("Equalize", 1.0, 9), Step("ShearY", 0.6, 3)),
    (Step("Color", 0.4, 7), Step("Equalize", 0.6, 0)),
    (Step("Posterize", 0.4, 6), Step("AutoContrast", 0.4, 7)),
    (Step("Solarize", 0.6, 8), Step("Color", 0.6, 9)),
    (Step("Solarize", 0.2, 4), Step("Rotate", 0.8, 9)),
    (Step("Rotate", 1.0, 7), Step("TranslateY", 0.8, 9)),
    (Step("ShearX", 0.0, 0), Step("Solarize", 0.8, 4)),
    (Step("ShearY", 0.8, 0), Step("Color", 0.6, 4)),
    (Step("Color", 1.0, 0), Step("Rotate", 0.6, 2)),
    (Step("Equalize", 0.8, 4), Step("Equalize", 0.0, 8)),
    (Step("Equalize", 1.0, 4), Step("AutoContrast", 0.6, 2)),
    (Step("ShearY", 0.4, 7), Step("SolarizeAdd", 0.6, 7)),
    (Step("Posterize", 0.8, 2), Step("Solarize", 0.6, 10)),
    (Step("Solarize", 0.6, 8), Step("Equalize", 0.6, 1)),
    (Step("Color", 0.8, 6), Step("Rotate", 0.4, 5)),
)
"""Sub-policies; each of an image's is drawn with probability 1/25."""

_OPS = {op.name: op for op in OPS}


# There is no Python control flow on tensors here for AutoGraph to convert, only time to lose.
@tf.autograph.experimental.do_not_convert
def auto_augment(
    image: tf.Tensor,
    seed: tf.Tensor,
    *,
    policy: tuple[SubPolicy, ...] = POLICY_V0,
    translate_const: float = 250.0,
    cutout_const: float = 100.0,
) -> tf.Tensor:
    """Applies the steps of one randomly chosen sub-policy, each with its probability.

    Args:
        image: uint8 [H, W, 3]; H and W may be dynamic.
        seed: int32 or int64 [2], as for `tf.random.stateless_uniform`; the same seed gives the same
            result.
        policy: sub-policies, all of the same number of steps.
        translate_const: Pixels that an image is translated by at magnitude 10.
        cutout_const: Half the side of the cut out square at magnitude 10, in pixels.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: If the image is not uint8.
    """
    image = tf.convert_to_tensor(image)
    if image.dtype != tf.uint8:
        raise ValueError(f"The image's dtype is {image.dtype.name}, but it must be uint8.")
    image = tf.ensure_shape(image, [None, None, 3])
    shape = image.shape
    num_steps = len(policy[0])
    seeds = tf.random.split(seed, num_steps + 2)
    index = tf.random.stateless_uniform([], seeds[0], maxval=len(policy), dtype=tf.int32)
    draws = tf.random.stateless_uniform([num_steps], seeds[1])

    def apply(sub_policy: SubPolicy) -> tf.Tensor:
        result = image
        for i, step in enumerate(sub_policy):
            op = _OPS[step.name]
            argument = op.argument(step.magnitude, translate_const, cutout_const)
            result = tf.cond(
                draws[i] < step.probability,
                functools.partial(op.apply, result, argument, seeds[i + 2]),
                functools.partial(tf.identity, result),
            )
        return result

    image = tf.switch_case(index, [functools.partial(apply, sub_policy) for sub_policy in policy])
    return tf.ensure_shape(image, shape)
