"""AutoAugment (Cubuk et al. 2018, arXiv:1805.09501): one of 25 pairs of operations.

EfficientNetV1 and V2-B0…B3 were trained with the policy that their TPU code calls v0. It is not the
one that the paper prints for ImageNet.
"""

from typing import NamedTuple

import tensorflow as tf

from effnetv2_jax.data.augment.operations import NUM_DRAWS, OPS, apply_ops


class Step(NamedTuple):
    """The name of an operation in ``OPS``, its probability, and its magnitude from 0 to 10."""

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
"""The sub-policies. Each is drawn with probability 1/25."""

_OPS = {op.name: op for op in OPS}


def _operations(policy: tuple[SubPolicy, ...]) -> list[tuple[str, int]]:
    """The distinct (name, magnitude) of a policy, sorted."""
    return sorted({(step.name, step.magnitude) for sub in policy for step in sub})


def _draw(seed: tf.Tensor, policy: tuple[SubPolicy, ...]) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws indices into ``_operations(policy)`` and random numbers, as ``apply_ops`` takes them.

    The index of a step that is not taken is beyond the end.
    """
    num_steps, distinct = len(policy[0]), _operations(policy)
    indices = [[distinct.index((step.name, step.magnitude)) for step in sub] for sub in policy]
    probabilities = [[step.probability for step in sub] for sub in policy]
    draws = tf.random.stateless_uniform([1 + num_steps * (1 + NUM_DRAWS)], seed)
    chosen = tf.cast(draws[0] * len(policy), tf.int32)
    draws = tf.reshape(draws[1:], [num_steps, 1 + NUM_DRAWS])
    taken = draws[:, 0] < tf.gather(tf.constant(probabilities), chosen)
    return tf.where(taken, tf.gather(tf.constant(indices), chosen), len(distinct)), draws[:, 1:]


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
        image: uint8 [height, width, 3] of static shape.
        seed: The seed of the draw, int32 or int64 [2]. The same seed gives the same result.
        policy: Sub-policies with the same number of steps.
        translate_const, cutout_const: As in ``images.Augmentation``, in px.

    Returns:
        uint8 [height, width, 3].
    """
    table = [
        (_OPS[name], _OPS[name].argument(magnitude, translate_const, cutout_const))
        for name, magnitude in _operations(policy)
    ]
    return apply_ops(image, table, *_draw(seed, policy))
