"""Image operations on uint8 pixels, as pure functions of a seed: what augmentations are made of.

The pixel operations follow Pillow's `ImageOps`, `ImageEnhance`, `Image.rotate` and
`Image.transform`, so that they can be checked against it. `OPS` holds one entry per operation of
AutoAugment's search space (Cubuk et al. 2018, arXiv:1805.09501) and SolarizeAdd.
"""

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf

FILL_VALUE = 128
"""Grey level of pixels that an operation leaves empty."""

Argument = float | int | None


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        name: Name as in the paper's search space.
        apply: Maps (image, argument, seed) to the new image; image and result are uint8 [H, W, 3],
            seed is an integer [2] tensor that only the operations with a random part read.
        argument: Maps (magnitude, translate_const, cutout_const) to `apply`'s argument, which is a
            Python number (degrees, pixels, bits, ...) or None where the operation has no strength.
    """

    name: str
    apply: Callable[[tf.Tensor, Argument, tf.Tensor], tf.Tensor]
    argument: Callable[[float, float, float], Argument]


def _lookup(image, table):
    """Replaces each value by `table`'s: uint8 [256] for all channels, or [3, 256] one per channel.

    Returns uint8 [H, W, 3].
    """
    indices = tf.cast(image, tf.int32)
    if table.shape.rank == 1:
        return tf.gather(table, indices)
    # Offsets are added to whole rows: broadcasting over an inner dimension of 3 is several times
    # slower on CPU.
    shape = tf.shape(image)
    rows = tf.reshape(indices, [shape[0], 3 * shape[1]])
    rows += tf.tile(tf.constant([0, 256, 512]), shape[1:2])
    return tf.reshape(tf.gather(tf.reshape(table, [-1]), rows), shape)


def _blend(degenerate, image, factor):
    """Inter- or extrapolates from `degenerate` (factor 0) to `image` (factor 1).

    Both are float32 of broadcastable shapes. Like Pillow's blend, it works in float32, clips to
    0..255 and truncates to uint8.
    """
    return tf.saturate_cast(degenerate + factor * (image - degenerate), tf.uint8)


def _grey(image):
    """Returns the luma (ITU-R 601) as int32 [H, W], rounded with Pillow's 16-bit fixed point."""
    red, green, blue = (tf.cast(image[..., channel], tf.int32) for channel in range(3))
    total = red * 19595 + green * 38470 + blue * 7471 + 0x8000
    return tf.bitwise.right_shift(total, 16)


def _auto_contrast(image, argument, seed):
    """Stretches each channel's range of values to 0..255; a constant channel stays as it is."""
    del argument, seed
    low = tf.cast(tf.reduce_min(image, axis=[0, 1]), tf.float64)[:, tf.newaxis]
    high = tf.cast(tf.reduce_max(image, axis=[0, 1]), tf.float64)[:, tf.newaxis]
    levels = tf.range(256, dtype=tf.float64)[tf.newaxis]
    # float64 and this order of operations: the result is truncated, so a last-bit difference from
    # Pillow would be a difference of one level.
    scale = 255.0 / tf.maximum(high - low, 1.0)
    stretched = levels * scale + -low * scale
    return _lookup(image, tf.saturate_cast(tf.where(high > low, stretched, levels), tf.uint8))


def _equalize(image, argument, seed):
    """Flattens each channel's histogram."""
    del argument, seed
    channels = tf.transpose(tf.reshape(tf.cast(image, tf.int32), [-1, 3]))
    # The raw op skips tf.math.bincount's extra passes over the values to find their range.
    counts = tf.raw_ops.DenseBincount(
        input=channels, size=256, weights=tf.constant([], tf.int32), binary_output=False
    )
    below = tf.cumsum(counts, axis=1, exclusive=True)
    # Pillow leaves the last non-empty bin out of the total that sets the step.
    total = tf.reduce_max(tf.where(counts > 0, below, 0), axis=1, keepdims=True)
    step = total // 255
    equalized = tf.minimum((step // 2 + below) // tf.maximum(step, 1), 255)
    return _lookup(image, tf.cast(tf.where(step > 0, equalized, tf.range(256)), tf.uint8))


# Invert, Posterize, Solarize and SolarizeAdd could be lookup tables too, but a few passes of uint8
# arithmetic take a fraction of tf.gather's time on CPU (and tf.where is as slow as tf.gather).


def _invert(image, argument, seed):
    """Returns 255 - image."""
    del argument, seed
    return tf.bitwise.invert(image)


def _posterize(image, bits, seed):
    """Keeps the `bits` (0..8) highest bits of each value."""
    del seed
    mask = 256 - 2 ** (8 - bits)
    return tf.bitwise.bitwise_and(image, tf.constant(mask, tf.uint8))


def _solarize(image, threshold, seed):
    """Inverts the values that are at least `threshold` (an int >= 0; none from 256 on)."""
    del seed
    if threshold > 255:
        return image
    flip = tf.cast(image >= threshold, tf.uint8) * 255
    return tf.bitwise.bitwise_xor(image, flip)


def _solarize_add(image, addition, seed):
    """Adds `addition` (an int >= 0) to the values below 128, up to 255."""
    del seed
    wanted = tf.cast(image < 128, tf.uint8) * min(addition, 255)
    headroom = tf.bitwise.invert(image)
    return image + tf.minimum(wanted, headroom)


def _color(image, factor, seed):
    """Blends with the grey image; factor 0 is grey."""
    del seed
    grey = tf.cast(_grey(image), tf.float32)[..., tf.newaxis]
    return _blend(grey, tf.cast(image, tf.float32), factor)


def _contrast(image, factor, seed):
    """Blends with a flat image of the mean grey level; factor 0 is flat."""
    del seed
    # Rows are summed first and then in int64, as a large image's total overflows int32.
    total = tf.reduce_sum(tf.cast(tf.reduce_sum(_grey(image), axis=1), tf.int64))
    pixels = tf.cast(tf.size(image) // 3, tf.float64)
    # Pillow's mean. google/automl's code instead divides the number of pixels by 256, whatever
    # their values, so that images of about 256 by 256 pixels and more are blended with white.
    mean = tf.floor(tf.cast(total, tf.float64) / pixels + 0.5)
    levels = tf.range(256, dtype=tf.float32)
    return _lookup(image, _blend(tf.cast(mean, tf.float32), levels, factor))


def _brightness(image, factor, seed):
    """Multiplies by `factor`; 0 is black."""
    del seed
    return _lookup(image, _blend(0.0, tf.range(256, dtype=tf.float32), factor))


def _sharpness(image, factor, seed):
    """Blends with a smoothed image; factor 0 is smooth. The outermost pixels stay as they are."""
    del seed
    pixels = tf.cast(image, tf.float32)
    kernel = tf.constant([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]])
    kernel = tf.tile(kernel[:, :, tf.newaxis, tf.newaxis], [1, 1, 3, 1])
    # SAME only so that images of fewer than 3 rows or columns work; its border is not used.
    # Sums of integers are exact in float32, and sum / 13 is never near half a level.
    total = tf.nn.depthwise_conv2d(pixels[tf.newaxis], kernel, [1, 1, 1, 1], "SAME")[0]
    smooth = tf.floor(total * (1 / 13) + 0.5)
    blended = _blend(smooth, pixels, factor)[1:-1, 1:-1]
    # The second strip is empty where the image has one row (column): the first has it already.
    shape = tf.shape(image)
    last_row, last_column = tf.maximum(shape[0] - 1, 1), tf.maximum(shape[1] - 1, 1)
    middle = [image[1:-1, :1], blended, image[1:-1, last_column:]]
    return tf.concat([image[:1], tf.concat(middle, axis=1), image[last_row:]], axis=0)


def _random_sign(seed):
    """Returns -1 or 1 with equal probability, a float64 scalar."""
    draw = tf.random.stateless_uniform([], seed)
    return tf.where(draw < 0.5, tf.constant(-1.0, tf.float64), tf.constant(1.0, tf.float64))


def _affine(image, a, b, c, d, e, f):
    """Nearest-neighbour affine transform, with the coefficients of Pillow's `Image.transform`.

    Args:
        image: uint8 [H, W, 3].
        a, b, c, d, e, f: Python floats or float64 scalars. The output at (x, y) is the input at
            (a x + b y + c, d x + e y + f), in pixels from the image's top left corner, so that
            pixel centres lie at half-integers.

    Returns:
        uint8 [H, W, 3]; what falls outside the input is `FILL_VALUE`.
    """
    # TensorFlow has pixel centres at integers.
    rows = [a, b, c + 0.5 * (a + b - 1), d, e, f + 0.5 * (d + e - 1), 0.0, 0.0]
    transform = tf.stack([tf.cast(value, tf.float64) for value in rows])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=tf.cast(transform, tf.float32)[tf.newaxis],
        output_shape=tf.shape(image)[:2],
        fill_value=float(FILL_VALUE),
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )[0]


def _rotate(image, degrees, seed):
    """Rotates about the centre by `degrees`, counter-clockwise or clockwise at random."""
    cosine = math.cos(math.radians(degrees))
    sine = math.sin(math.radians(degrees)) * _random_sign(seed)
    size = tf.cast(tf.shape(image), tf.float64)
    x, y = size[1] / 2, size[0] / 2
    x_offset = x - cosine * x + sine * y
    y_offset = y - sine * x - cosine * y
    return _affine(image, cosine, -sine, x_offset, sine, cosine, y_offset)


def _shear_x(image, level, seed):
    """Shifts each row by `level` times its distance from the top, left or right at random."""
    return _affine(image, 1.0, level * _random_sign(seed), 0.0, 0.0, 1.0, 0.0)


def _shear_y(image, level, seed):
    """Shifts each column by `level` times its distance from the left, up or down at random."""
    return _affine(image, 1.0, 0.0, 0.0, level * _random_sign(seed), 1.0, 0.0)


def _random_shift(pixels, seed):
    """Returns `pixels` with a random sign, as the whole number that Pillow's rounding gives."""
    # TensorFlow rounds halves away from zero, Pillow up.
    return tf.floor(pixels * _random_sign(seed) + 0.5)


def _translate_x(image, pixels, seed):
    """Shifts the image by `pixels`, left or right at random."""
    return _affine(image, 1.0, 0.0, _random_shift(pixels, seed), 0.0, 1.0, 0.0)


def _translate_y(image, pixels, seed):
    """Shifts the image by `pixels`, up or down at random."""
    return _affine(image, 1.0, 0.0, 0.0, 0.0, 1.0, _random_shift(pixels, seed))


def _cutout(image, half_side, seed):
    """Greys a square of 2 * `half_side` pixels, less what lies outside the image.

    Its centre is uniform over the image's pixels.
    """
    size = tf.shape(image)[:2]
    draws = tf.random.stateless_uniform([2], seed)
    centre = tf.cast(draws * tf.cast(size, tf.float32), tf.int32)
    top, left = tf.unstack(tf.maximum(centre - half_side, 0))
    bottom, right = tf.unstack(tf.minimum(centre + half_side, size))
    # Cut and joined, as tf.where with a broadcast mask takes five times as long on CPU.
    hole = tf.fill([bottom - top, right - left, 3], tf.constant(FILL_VALUE, tf.uint8))
    band = tf.concat([image[top:bottom, :left], hole, image[top:bottom, right:]], axis=1)
    return tf.concat([image[:top], band, image[bottom:]], axis=0)


def _none(magnitude, translate_const, cutout_const):
    del magnitude, translate_const, cutout_const


def _enhance_factor(magnitude, translate_const, cutout_const):
    del translate_const, cutout_const
    return 1.8 * magnitude / 10 + 0.1


def _shear_level(magnitude, translate_const, cutout_const):
    del translate_const, cutout_const
    return 0.3 * magnitude / 10


def _translate_pixels(magnitude, translate_const, cutout_const):
    del cutout_const
    return translate_const * magnitude / 10


OPS: tuple[Op, ...] = (
    Op("AutoContrast", _auto_contrast, _none),
    Op("Equalize", _equalize, _none),
    Op("Invert", _invert, _none),
    Op("Rotate", _rotate, lambda m, t, c: 30.0 * m / 10),
    Op("Posterize", _posterize, lambda m, t, c: min(int(m / 10 * 4), 8)),
    Op("Solarize", _solarize, lambda m, t, c: int(m / 10 * 256)),
    Op("Color", _color, _enhance_factor),
    Op("Contrast", _contrast, _enhance_factor),
    Op("Brightness", _brightness, _enhance_factor),
    Op("Sharpness", _sharpness, _enhance_factor),
    Op("ShearX", _shear_x, _shear_level),
    Op("ShearY", _shear_y, _shear_level),
    Op("TranslateX", _translate_x, _translate_pixels),
    Op("TranslateY", _translate_y, _translate_pixels),
    Op("Cutout", _cutout, lambda m, t, c: int(m / 10 * c)),
    Op("SolarizeAdd", _solarize_add, lambda m, t, c: int(m / 10 * 110)),
)
"""In the order of RandAugment's indices."""
