"""How RandAugment draws its operations and puts them together."""

import numpy as np
import pytest
import tensorflow as tf

from effnetv2_jax.data.augment import operations as ops
from effnetv2_jax.data.augment import randaugment
from tests.data.augment.test_operations import IMAGES, apply_op, argument_of, noise_image


def compiled(**keywords):
    """`rand_augment`, compiled once per shape."""
    return tf.function(
        lambda image, seed: randaugment.rand_augment(image, seed, **keywords), autograph=False
    )


def draw_all(count, num_layers):
    seeds = tf.stack([tf.range(count), tf.fill([count], 7)], axis=1)
    draw = tf.function(
        lambda seeds: tf.map_fn(
            lambda seed: randaugment._draw(seed, num_layers),
            seeds,
            fn_output_signature=(tf.int32, tf.float32),
        )
    )
    return [value.numpy() for value in draw(seeds)]


def test_composes_the_chosen_ops():
    image = IMAGES["structured"]
    # No multiple of this magnitude's factor is nearly an integer, so that fused multiply-adds
    # (see test_ops) make no difference.
    augment = compiled(magnitude=8.333, num_layers=3)
    for value in range(12):
        seed = tf.constant([value, 11], tf.int64)
        indices, draws = randaugment._draw(seed, 3)
        expected = image
        for index, op_draws in zip(indices.numpy(), draws, strict=True):
            name = ops.OPS[index].name
            expected = apply_op(name, expected, argument_of(name, 8.333), op_draws)
        np.testing.assert_array_equal(augment(tf.constant(image), seed), expected)


def test_is_a_function_of_the_seed():
    image = tf.constant(IMAGES["noise"])
    augment = compiled(magnitude=7.0)
    first, again = (
        [augment(image, tf.constant([value, 1])).numpy() for value in range(12)] for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)
    assert len({result.tobytes() for result in first}) >= 11


def test_ops_are_uniform_and_layers_independent():
    count = 3200
    chosen, draws = draw_all(count, 2)
    for layer in range(2):
        counts = np.bincount(chosen[:, layer], minlength=16)
        assert counts.shape == (16,)
        # The 1e-4 quantile of chi square with 15 degrees of freedom is 44.3.
        assert ((counts - count / 16) ** 2).sum() / (count / 16) < 44.3
    pairs = np.bincount(chosen[:, 0] * 16 + chosen[:, 1], minlength=256)
    # Mean 255, five standard deviations of sqrt(2 * 255).
    assert ((pairs - count / 256) ** 2).sum() / (count / 256) < 368
    assert len(np.unique(draws.reshape(-1, 3), axis=0)) == 2 * count


def test_draws_are_uniform_and_independent():
    count = 3200
    chosen, draws = draw_all(count, 2)
    assert chosen.shape == (count, 2)
    assert draws.shape == (count, 2, ops.NUM_DRAWS)
    draws = draws.reshape(count, -1)
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        counts = np.bincount((column * 16).astype(int), minlength=16)
        # The 1e-4 quantile of chi square with 15 degrees of freedom is 44.3.
        assert ((counts - count / 16) ** 2).sum() / (count / 16) < 44.3
    # Neither with each other nor with the choice: five standard deviations.
    correlations = np.corrcoef(np.concatenate([chosen, draws], axis=1).T) - np.eye(8)
    assert np.abs(correlations).max() < 5 / count**0.5


def test_in_parallel_in_tf_data():
    images = np.random.default_rng(2).integers(0, 256, (24, 40, 31, 3), np.uint8)

    def augment(index, image):
        if index > 0:  # has AutoGraph convert this function
            image = tf.identity(image)
        seed = tf.stack([index, tf.constant(1, tf.int64)])
        return randaugment.rand_augment(image, seed, magnitude=25.0, num_layers=2)

    dataset = tf.data.Dataset.from_tensor_slices(images)
    dataset = dataset.enumerate().map(augment, num_parallel_calls=2)
    assert dataset.element_spec == tf.TensorSpec([40, 31, 3], tf.uint8)
    results = list(dataset.as_numpy_iterator())
    assert len(results) == len(images)
    alone = compiled(magnitude=25.0, num_layers=2)
    for index, (image, result) in enumerate(zip(images, results, strict=True)):
        expected = alone(tf.constant(image), tf.constant([index, 1], tf.int64))
        np.testing.assert_array_equal(result, expected)


def test_keeps_a_static_shape():
    concrete = compiled(magnitude=5.0, num_layers=1).get_concrete_function(
        tf.TensorSpec([8, 6, 3], tf.uint8), tf.TensorSpec([2], tf.int32)
    )
    assert concrete.structured_outputs.shape == (8, 6, 3)


@pytest.mark.parametrize("height, width", [(1, 1), (2, 5)])
def test_smallest_images(height, width):
    image = tf.constant(noise_image(height, width))
    augment = compiled(magnitude=10.0)
    for value in range(8):
        assert augment(image, tf.constant([value, 0])).shape == image.shape


def test_magnitude_zero_and_no_layers():
    image = tf.constant(IMAGES["structured"])
    augment = compiled(magnitude=0)
    for value in range(8):
        assert augment(image, tf.constant([value, 0])).shape == image.shape
    result = randaugment.rand_augment(image, [0, 0], magnitude=9.0, num_layers=0)
    np.testing.assert_array_equal(result, image)


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"magnitude": -0.5}, r"magnitude is -0\.5"),
        ({"magnitude": float("nan")}, "magnitude is nan"),
        ({"magnitude": 1.0, "num_layers": -1}, "num_layers is -1"),
    ],
)
def test_refuses_bad_arguments(keywords, message):
    image = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(ValueError, match=message):
        randaugment.rand_augment(image, tf.constant([0, 0]), **keywords)
