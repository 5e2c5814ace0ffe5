"""How RandAugment draws its operations and puts them together."""

import numpy as np
import pytest
import tensorflow as tf
from test_ops import IMAGES, apply_op, argument_of, noise_image

from effnetv2_jax.data import ops, randaugment


def test_composes_the_chosen_ops():
    image = IMAGES["structured"]
    for value in range(12):
        seed = tf.constant([value, 11], tf.int64)
        indices, op_seeds = randaugment.choose_ops(seed, 3)
        expected = image
        for index, op_seed in zip(indices.numpy(), op_seeds, strict=True):
            name = ops.OPS[index].name
            expected = apply_op(name, expected, argument_of(name, 8.333), op_seed)
        result = randaugment.rand_augment(tf.constant(image), seed, magnitude=8.333, num_layers=3)
        np.testing.assert_array_equal(result, expected)


def test_is_a_function_of_the_seed():
    image = tf.constant(IMAGES["noise"])
    first, again = (
        [randaugment.rand_augment(image, [value, 1], magnitude=7.0).numpy() for value in range(12)]
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)
    assert len({result.tobytes() for result in first}) >= 11


def test_ops_are_uniform_and_layers_independent():
    count = 3200

    @tf.function
    def choose_all(seeds):
        return tf.map_fn(
            lambda seed: randaugment.choose_ops(seed, 2),
            seeds,
            fn_output_signature=(tf.int32, tf.int32),
        )

    seeds = tf.stack([tf.range(count), tf.fill([count], 7)], axis=1)
    chosen, op_seeds = (value.numpy() for value in choose_all(seeds))
    for layer in range(2):
        counts = np.bincount(chosen[:, layer], minlength=16)
        assert counts.shape == (16,)
        # The 1e-4 quantile of chi square with 15 degrees of freedom is 44.3.
        assert ((counts - count / 16) ** 2).sum() / (count / 16) < 44.3
    pairs = np.bincount(chosen[:, 0] * 16 + chosen[:, 1], minlength=256)
    # Mean 255, five standard deviations of sqrt(2 * 255).
    assert ((pairs - count / 256) ** 2).sum() / (count / 256) < 368
    assert len(np.unique(op_seeds.reshape(-1, 2), axis=0)) == 2 * count


def test_in_tf_data_with_dynamic_shapes():
    images = [noise_image(*shape) for shape in ((1, 1), (5, 9), (40, 31), (67, 90))] * 6

    def augment(index, image):
        if tf.shape(image)[0] > 2:  # has AutoGraph convert this function
            image = tf.identity(image)
        seed = tf.stack([index, tf.constant(1, tf.int64)])
        return randaugment.rand_augment(image, seed, magnitude=25.0, num_layers=2)

    dataset = tf.data.Dataset.from_generator(
        lambda: iter(images), output_signature=tf.TensorSpec([None, None, 3], tf.uint8)
    )
    dataset = dataset.enumerate().map(augment, num_parallel_calls=2)
    assert dataset.element_spec == tf.TensorSpec([None, None, 3], tf.uint8)
    results = list(dataset.as_numpy_iterator())
    assert len(results) == len(images)
    for index, (image, result) in enumerate(zip(images, results, strict=True)):
        seed = tf.constant([index, 1], tf.int64)
        np.testing.assert_array_equal(
            result, randaugment.rand_augment(image, seed, magnitude=25.0, num_layers=2)
        )


def test_keeps_a_static_shape():
    function = tf.function(
        lambda image, seed: randaugment.rand_augment(image, seed, magnitude=5.0, num_layers=1)
    )
    concrete = function.get_concrete_function(
        tf.TensorSpec([8, 6, 3], tf.uint8), tf.TensorSpec([2], tf.int32)
    )
    assert concrete.structured_outputs.shape == (8, 6, 3)


def test_magnitude_zero_and_no_layers():
    image = tf.constant(IMAGES["structured"])
    for value in range(8):
        result = randaugment.rand_augment(image, [value, 0], magnitude=0, num_layers=2)
        assert result.shape == image.shape
    result = randaugment.rand_augment(image, [0, 0], magnitude=9.0, num_layers=0)
    np.testing.assert_array_equal(result, image)


@pytest.mark.parametrize(
    "image, keywords, message",
    [
        (np.zeros((2, 2, 3), np.uint8), {"magnitude": -0.5}, r"magnitude is -0\.5"),
        (np.zeros((2, 2, 3), np.uint8), {"magnitude": float("nan")}, "magnitude is nan"),
        (np.zeros((2, 2, 3), np.uint8), {"magnitude": 1.0, "num_layers": -1}, "num_layers is -1"),
        (np.zeros((2, 2, 3), np.float32), {"magnitude": 1.0}, "dtype is float32"),
    ],
)
def test_refuses_bad_arguments(image, keywords, message):
    with pytest.raises(ValueError, match=message):
        randaugment.rand_augment(image, tf.constant([0, 0]), **keywords)
