"""From an encoded image to uint8 pixels of the right size: decode, crop, resize, flip."""

import tensorflow as tf


def decode(image: tf.Tensor) -> tf.Tensor:
    """Decodes a string (JPEG, PNG, BMP, GIF's first frame) to uint8 [height, width, 3].

    An image that already is uint8 [height, width, 3] passes through.
    """
    if image.dtype != tf.string:
        return image
    image = tf.io.decode_image(image, channels=3, expand_animations=False)
    image.set_shape((None, None, 3))
    return image


def random_crop(
    image: tf.Tensor,
    seed: tf.Tensor,
    *,
    area_range: tuple[float, float],
    aspect_ratio_range: tuple[float, float],
    min_object_covered: float,
) -> tf.Tensor:
    """Inception's crop: a random box of random area and shape.

    Args:
        image: uint8 [height, width, 3].
        seed: int [2].
        area_range: of the box, over the image's area.
        aspect_ratio_range: width over height of the box.
        min_object_covered: fraction of the image the box must cover.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=seed,
        min_object_covered=min_object_covered,
        aspect_ratio_range=aspect_ratio_range,
        area_range=area_range,
    )
    image = tf.slice(image, begin, size)
    image.set_shape((None, None, 3))
    return image


def center_crop(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """Cuts the central square with image_size / (image_size + 32) of the short side."""
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    short_side = tf.cast(tf.minimum(height, width), tf.float32)
    # The margin suits ImageNet's photographs, but an image of a few pixels must keep one of them.
    side = tf.maximum(tf.cast(short_side * (image_size / (image_size + 32)), tf.int32), 1)
    return tf.image.crop_to_bounding_box(
        image, (height - side) // 2, (width - side) // 2, side, side
    )


def resize(image: tf.Tensor, image_size: int, interpolation: str) -> tf.Tensor:
    """Resizes to uint8 [image_size, image_size, 3], without antialiasing as the published runs."""
    image = tf.image.resize(image, (image_size, image_size), method=interpolation)
    image = tf.cast(tf.clip_by_value(tf.round(image), 0.0, 255.0), tf.uint8)
    return tf.ensure_shape(image, (image_size, image_size, 3))


def random_flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Flips left and right with probability ½; seed is int [2]."""
    return tf.image.stateless_random_flip_left_right(image, seed)
