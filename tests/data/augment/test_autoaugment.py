"""AutoAugment's policy against timm's, and how a sub-policy is drawn and applied."""

import json
import pathlib

import numpy as np
import tensorflow as tf

from effnetv2_jax.data.augment.autoaugment import (
    POLICY_V0,
    Step,
    _draw,
    _operations,
    auto_augment,
)
from effnetv2_jax.data.augment.operations import NUM_DRAWS
from tests.data.augment.test_operations import IMAGES, OPS, apply_op

GOLDEN = pathlib.Path(__file__).parent.parent.parent / "golden" / "autoaugment_v0.json"


def always(*steps):
    """A policy of one sub-policy whose steps are all taken."""
    return (tuple(Step(name, 1.0, magnitude) for name, magnitude in steps),)


def test_policy_is_timms():
    golden = [
        tuple(Step(*step) for step in pair) for pair in json.loads(GOLDEN.read_text())["policy"]
    ]
    assert list(POLICY_V0) == golden


def test_steps_are_applied_one_after_the_other_at_their_magnitudes():
    image = IMAGES["structured"]
    steps = [("Posterize", 6), ("Solarize", 3), ("Color", 4)]
    expected = image
    for name, magnitude in steps:
        expected = apply_op(name, expected, OPS[name].argument(magnitude, 250.0, 100.0))
    result = auto_augment(tf.constant(image), [1, 2], policy=always(*steps))
    np.testing.assert_array_equal(result, expected)


def test_translation_is_250_px_at_magnitude_10_unless_said():
    image = IMAGES["noise"]  # 96 px: it leaves the image
    policy = always(("TranslateY", 10))
    assert (auto_augment(image, [0, 0], policy=policy).numpy() == 128).all()
    moved = auto_augment(image, [0, 0], policy=policy, translate_const=10.0).numpy()
    rows = (moved == 128).all(axis=(1, 2)).sum()
    assert rows == 10


def test_sub_policies_are_uniform_and_steps_have_their_probabilities():
    # A grey image tells which steps were taken: each adds its own amount.
    amounts = {0: 1, 1: 2, 2: 4, 3: 8, 4: 16, 5: 32}
    magnitudes = {index: (amount + 0.5) / 11 for index, amount in amounts.items()}
    policy = tuple(
        (
            Step("SolarizeAdd", probability, magnitudes[2 * i]),
            Step("SolarizeAdd", 0.3, magnitudes[2 * i + 1]),
        )
        for i, probability in enumerate((1.0, 0.6, 0.0))
    )
    count = 3000

    @tf.function
    def augment_all(seeds):
        image = tf.zeros([2, 2, 3], tf.uint8)
        return tf.map_fn(
            lambda seed: auto_augment(image, seed, policy=policy)[0, 0, 0],
            seeds,
            fn_output_signature=tf.uint8,
        )

    values = augment_all(tf.stack([tf.range(count), tf.fill([count], 3)], axis=1)).numpy()
    taken = {index: (values & amount > 0).sum() for index, amount in amounts.items()}
    third = count / 3
    for index, probability in enumerate((1.0, 0.3, 0.6, 0.3, 0.0, 0.3)):
        # Five standard deviations of a binomial draw.
        share = probability / 3
        assert abs(taken[index] - probability * third) <= 5 * (count * share * (1 - share)) ** 0.5
    # The second step does not depend on the first.
    both = (values & 12 == 12).sum()
    assert abs(both - 0.18 * third) < 5 * (count * 0.06 * 0.94) ** 0.5


def test_draws_are_uniform_whether_or_not_a_step_is_taken():
    policy = ((Step("Rotate", 0.5, 3), Step("Rotate", 0.5, 4)),) * 2
    count = 3000

    @tf.function
    def draw_all(seeds):
        signature = (tf.int32, tf.float32)
        return tf.map_fn(lambda seed: _draw(seed, policy), seeds, fn_output_signature=signature)

    seeds = tf.stack([tf.range(count), tf.fill([count], 4)], axis=1)
    indices, draws = (value.numpy() for value in draw_all(seeds))
    assert draws.shape == (count, 2, NUM_DRAWS)
    assert draws.min() >= 0
    assert draws.max() < 1
    for step in range(2):
        taken = indices[:, step] != len(_operations(policy))
        for column in draws[taken, step].T:
            counts = np.bincount((column * 16).astype(int), minlength=16)
            # The 1e-4 quantile of chi square with 15 degrees of freedom is 44.3.
            assert ((counts - taken.sum() / 16) ** 2).sum() / (taken.sum() / 16) < 44.3


def test_operations_are_distinct_and_indices_are_of_them():
    distinct = _operations(POLICY_V0)
    assert len(set(distinct)) == len(distinct)
    assert set(distinct) == {(step.name, step.magnitude) for sub in POLICY_V0 for step in sub}
    pairs = {tuple((step.name, step.magnitude) for step in sub) for sub in POLICY_V0}
    seen = set()
    draw_indices = tf.function(lambda seed: _draw(seed, POLICY_V0)[0])
    for value in range(1000):
        indices = draw_indices(tf.constant([value, 5])).numpy()
        if max(indices) < len(distinct):
            seen.add(tuple(distinct[index] for index in indices))
    # Two sub-policies have a step that is never taken.
    never = {
        tuple((step.name, step.magnitude) for step in sub)
        for sub in POLICY_V0
        if not all(step.probability for step in sub)
    }
    assert len(never) == 2
    assert seen == pairs - never


def test_is_a_function_of_the_seed_and_keeps_the_shape():
    image = tf.constant(IMAGES["noise"])
    function = tf.function(lambda image, seed: auto_augment(image, seed))
    seeds = [tf.constant([value, 1]) for value in range(12)]
    first, again = ([function(image, seed).numpy() for seed in seeds] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len({result.tobytes() for result in first}) >= 7  # a few are left as they are
    concrete = function.get_concrete_function(
        tf.TensorSpec([8, 6, 3], tf.uint8), tf.TensorSpec([2], tf.int32)
    )
    assert concrete.structured_outputs.shape == (8, 6, 3)
