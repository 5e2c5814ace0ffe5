"""Times the steps from a file to a training image on one core."""

import time
from collections.abc import Callable

import tensorflow as tf

from effnetv2_jax.data import decoding, images
from effnetv2_jax.data.order import Order
from effnetv2_jax.data.sources import Example, Split
from effnetv2_jax.preprocessing import Preprocessing
from effnetv2_jax.progressive import Stage

STEPS = ("read", "entropy", "decode", "resize", "augment")
"""``entropy`` decodes only the last row of the crop. For a JPEG, that is Huffman decoding."""


def make_step_timers(
    split: Split,
    stage: Stage,
    *,
    num_batches: int,
    seed: int,
    preprocessing: Preprocessing,
    augmentation: images.Augmentation,
) -> list[Callable[[], float]]:
    """Makes a timer for each of ``STEPS``.

    Args:
        split: The split of a source.
        stage: The stage, of which image size, magnitude and batch size are used.
        num_batches: The number of batches that a timer reads, at least 2. The first is not timed.
        seed: The seed of the run.
        preprocessing: The input family.
        augmentation: The augmentation.

    Returns:
        Functions of () → µs of one core an image, for the step and those before it.
    """
    order = Order(split, seed)
    elements = order.elements(0)

    def last_pixel(example: Example) -> tf.Tensor:
        # In the crop's last row: a decoder has to read all of the file before it.
        def choose_box(shape: tf.Tensor) -> decoding.Box:
            box = images.crop_box(shape, example["seed"], preprocessing, augmentation)
            return tf.stack([box[0] + box[2] - 1, box[1], 1, 1])

        return decoding.decode_box(example["image"], choose_box)

    def crop(example: Example) -> tf.Tensor:
        image, seed = example["image"], example["seed"]
        return images.random_crop(image, seed, stage, preprocessing, augmentation)

    def resized(example: Example) -> tf.Tensor:
        return decoding.resize(crop(example), stage.image_size, preprocessing.interpolation)

    def augmented(example: Example) -> tf.Tensor:
        return images.flip_and_augment(resized(example), example["seed"], stage, augmentation)

    def read(example: Example) -> tf.Tensor:
        image = example["image"]
        if image.dtype == tf.string:
            image = tf.io.decode_raw(tf.strings.substr(image, 0, 1), tf.uint8)
        return tf.reshape(image, [1, -1, 1])

    def timed(function: Callable[[Example], tf.Tensor]) -> Callable[[], float]:
        def prepare(element) -> tf.Tensor:
            return function(order.fetch(element))[0, 0, 0]

        options = tf.data.Options()
        options.threading.private_threadpool_size = 1
        options.threading.max_intra_op_parallelism = 1
        options.autotune.enabled = False
        # Nothing may be done ahead of time, while something else is measured.
        options.experimental_optimization.apply_default_optimizations = False
        dataset = (
            elements.map(tf.autograph.experimental.do_not_convert(prepare))
            .batch(stage.batch_size)
            .with_options(options)
        )

        def measure() -> float:
            batches = iter(dataset.take(num_batches))
            next(batches)
            started = time.process_time()
            for _ in batches:
                pass
            seconds = time.process_time() - started
            return 1e6 * seconds / (stage.batch_size * (num_batches - 1))

        return measure

    return [timed(function) for function in (read, last_pixel, crop, resized, augmented)]
