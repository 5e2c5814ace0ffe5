"""The operations that augmentations consist of, on uint8 pixels, as functions of random draws.

The pixel operations follow Pillow's `ImageOps`, `ImageEnhance`, `Image.rotate` and
`Image.transform`, and are tested against them. `OPS` has the operations of AutoAugment's search
space (Cubuk et al. 2018, arXiv:1805.09501) and SolarizeAdd.

All of them are written for XLA. Shapes are static, random numbers are arguments, and everything
that depends only on the image's size and an argument (such as the pixels that an affine transform
reads) is computed once by NumPy. `apply_ops` compiles a whole table of operations into one program.
TensorFlow's own kernels take up to twenty times as long for the same passes (docs/performance.md).
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

FILL_VALUE = 128
"""The grey level of pixels that an operation leaves empty."""

NUM_DRAWS = 3
"""The number of random numbers that an operation may use: a sign, and the y and x of a point."""

Argument = float | int | None


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        name: The name in the paper's search space.
        apply: A function of (image, argument, draws) that returns the image afterwards. Images are
            uint8 [height, width, 3] of static shape, draws float32 [NUM_DRAWS] uniform in [0, 1).
        argument: A function of (magnitude, translate_const, cutout_const) that returns the argument
            of ``apply``: a Python number (degrees, pixels, bits, …), or None if the operation has
            no strength.
    """

    name: str
    apply: Callable[[tf.Tensor, Argument, tf.Tensor], tf.Tensor]
    argument: Callable[[float, float, float], Argument] = lambda m, t, c: None


def apply_ops(
    image: tf.Tensor,
    table: Sequence[tuple[Op, Argument]],
    indices: tf.Tensor,
    draws: tf.Tensor,
) -> tf.Tensor:
    """Applies operations from a table one after the other, as one compiled program.

    Args:
        image: uint8 [height, width, 3] of static shape.
        table: The operations with their arguments.
        indices: Places in the table, int32 [layers]. One outside of it leaves the image as it is.
        draws: The random numbers of the operations, float32 [layers, NUM_DRAWS] uniform in [0, 1).

    Returns:
        uint8 [height, width, 3].
    """
    _settle_xla_flags()
    shape = image.shape

    # Without AutoGraph, which would find no Python control flow on tensors and take its time.
    @tf.function(jit_compile=True, autograph=False)
    def compiled(image, indices, draws):
        # A loop instead of a list of layers, so that every operation is compiled once.
        def layer(i, image):
            branches = [lambda op=op, a=a: op.apply(image, a, draws[i]) for op, a in table]
            # The last branch is taken for every index out of range.
            result = tf.switch_case(indices[i], [*branches, lambda: tf.identity(image)])
            return i + 1, tf.ensure_shape(result, shape)

        num_layers = indices.shape[0]
        return tf.while_loop(lambda i, image: i < num_layers, layer, (0, image))[1]

    return compiled(image, indices, draws)


@functools.cache
def _settle_xla_flags() -> None:
    """Makes TensorFlow's XLA read its flags once, without those that are meant for JAX's XLA.

    XLA ends the process over an unknown flag, and the two have different versions.
    """
    flags = os.environ.pop("XLA_FLAGS", None)
    try:
        with tf.init_scope():
            tf.function(lambda x: x + 1, jit_compile=True, autograph=False)(tf.constant(0))
    finally:
        if flags is not None:
            os.environ["XLA_FLAGS"] = flags


def _lookup(image, table):
    """Replaces each value by that in the table of its channel, uint8 [3, 256]."""
    offsets = tf.constant([0, 256, 512])
    return tf.gather(tf.reshape(table, [-1]), tf.cast(image, tf.int32) + offsets)


def _blend(degenerate, image, factor):
    """Inter- or extrapolates from ``degenerate`` (factor 0) to ``image`` (factor 1).

    Like Pillow's blend, it works in float32, clips to 0 … 255 and truncates to uint8. Compilers
    fuse the multiplication and the addition, so a value that is an integer in Pillow may come out
    just below it, and as one level less.
    """
    blended = degenerate + tf.constant(factor, tf.float32) * (image - degenerate)
    return tf.cast(tf.clip_by_value(blended, 0.0, 255.0), tf.uint8)


def _grey(image):
    """The luma (ITU-R 601) as int32 [height, width], rounded with Pillow's 16-bit fixed point."""
    red, green, blue = (tf.cast(image[..., channel], tf.int32) for channel in range(3))
    total = red * 19595 + green * 38470 + blue * 7471 + 0x8000
    return tf.bitwise.right_shift(total, 16)


def _auto_contrast(image, _argument, _draws):
    """Stretches each channel's range of values to 0 … 255; a constant channel stays as it is."""
    # In two steps, because compilers vectorise the first one.
    low = tf.reduce_min(tf.reduce_min(image, axis=0), axis=0)
    high = tf.reduce_max(tf.reduce_max(image, axis=0), axis=0)
    low, high = (tf.cast(value, tf.float64)[:, tf.newaxis] for value in (low, high))
    levels = tf.constant(np.arange(256.0)[np.newaxis])
    # float64 and this order of operations, because the result is truncated: a last-bit difference
    # from Pillow would be a difference of one level.
    scale = 255.0 / tf.maximum(high - low, 1.0)
    stretched = tf.clip_by_value(levels * scale + -low * scale, 0.0, 255.0)
    return _lookup(image, tf.cast(tf.where(high > low, stretched, levels), tf.uint8))


def _equalize(image, _argument, _draws):
    """Flattens each channel's histogram."""
    bins = tf.reshape(tf.cast(image, tf.int32) + tf.constant([0, 256, 512]), [-1, 1])
    ones = tf.ones([bins.shape[0]], tf.int32)
    counts = tf.tensor_scatter_nd_add(tf.zeros([3 * 256], tf.int32), bins, ones)
    counts = tf.reshape(counts, [3, 256])
    below = tf.cumsum(counts, axis=1, exclusive=True)
    # Pillow leaves the last non-empty bin out of the total that sets the step.
    total = tf.reduce_max(tf.where(counts > 0, below, 0), axis=1, keepdims=True)
    step = total // 255
    equalized = tf.minimum((step // 2 + below) // tf.maximum(step, 1), 255)
    levels = tf.constant(np.arange(256, dtype=np.int32))
    return _lookup(image, tf.cast(tf.where(step > 0, equalized, levels), tf.uint8))


def _posterize(image, bits, _draws):
    """Keeps the ``bits`` (0 … 8) highest bits of each value."""
    mask = 256 - 2 ** (8 - bits)
    return tf.bitwise.bitwise_and(image, tf.constant(mask, tf.uint8))


def _solarize(image, threshold, _draws):
    """Inverts the values that are at least ``threshold`` (an int ≥ 0; none from 256 on)."""
    if threshold > 255:
        return tf.identity(image)
    return tf.where(image >= threshold, tf.bitwise.invert(image), image)


def _solarize_add(image, addition, _draws):
    """Adds ``addition`` (an int ≥ 0) to the values below 128, up to 255."""
    headroom = tf.bitwise.invert(image)
    added = image + tf.minimum(headroom, tf.constant(min(addition, 255), tf.uint8))
    return tf.where(image < 128, added, image)


def _color(image, factor, _draws):
    """Blends with the grey image; factor 0 is grey."""
    grey = tf.cast(_grey(image), tf.float32)[..., tf.newaxis]
    return _blend(grey, tf.cast(image, tf.float32), factor)


def _contrast(image, factor, _draws):
    """Blends with a flat image of the mean grey level; factor 0 is flat."""
    height, width, _ = image.shape
    # Rows are summed first and their sums in int64, because a large image's total overflows int32.
    total = tf.reduce_sum(tf.cast(tf.reduce_sum(_grey(image), axis=1), tf.int64))
    # Pillow's mean. The code of google/automl instead divides the number of pixels by 256,
    # whatever their values. It blends images of about 256 by 256 pixels and more with white.
    mean = tf.floor(tf.cast(total, tf.float64) / (height * width) + 0.5)
    return _blend(tf.cast(mean, tf.float32), tf.cast(image, tf.float32), factor)


def _brightness(image, factor, _draws):
    """Multiplies by ``factor``; 0 is black."""
    return _blend(tf.constant(0.0), tf.cast(image, tf.float32), factor)


def _sharpness(image, factor, _draws):
    """Blends with a smoothed image; factor 0 is smooth. The outermost pixels stay as they are."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return tf.identity(image)
    # Rows of 3 · width values, because compilers do not vectorise an inner dimension of 3.
    flat = tf.reshape(image, [height, 3 * width])
    pixels = tf.cast(flat, tf.float32)
    inner = pixels[1:-1, 3:-3]
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    # Sums of integers are exact in float32, and sum / 13 is never near half a level.
    total = rows[:, :-6] + rows[:, 3:-3] + rows[:, 6:] + 4.0 * inner
    blended = _blend(tf.floor(total * (1 / 13) + 0.5), inner, factor)
    middle = tf.concat([flat[1:-1, :3], blended, flat[1:-1, -3:]], axis=1)
    return tf.reshape(tf.concat([flat[:1], middle, flat[-1:]], axis=0), image.shape)


# The coefficients of an affine transform, as in Pillow's Image.transform: the output at (x, y) is
# the input at (a x + b y + c, d x + e y + f), in pixels from the top left corner.
Coefficients = tuple[float, float, float, float, float, float]


def _source_pixels(height: int, width: int, coefficients: Coefficients) -> np.ndarray:
    """The nearest source of every pixel, y · width + x, or −1 outside; int32 [height, width]."""
    a, b, c, d, e, f = coefficients
    y, x = np.mgrid[:height, :width] + 0.5
    source_x, source_y = np.floor(a * x + b * y + c), np.floor(d * x + e * y + f)
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    return np.where(inside, source_y * width + source_x, -1).astype(np.int32)


def _affine(image, draws, coefficients: Callable[[float], Coefficients]):
    """Transforms with ``coefficients(-1.0)`` or ``coefficients(1.0)``, whichever is drawn."""
    height, width, _ = image.shape
    both = np.stack([_source_pixels(height, width, coefficients(sign)) for sign in (-1.0, 1.0)])
    sources = tf.gather(tf.constant(both), tf.cast(draws[0] >= 0.5, tf.int32))
    moved = tf.gather(tf.reshape(image, [-1, 3]), tf.maximum(sources, 0))
    return tf.where((sources >= 0)[..., tf.newaxis], moved, tf.constant(FILL_VALUE, tf.uint8))


def _rotate(image, degrees, draws):
    """Rotates about the centre by ``degrees``, counter-clockwise or clockwise at random."""
    height, width, _ = image.shape
    # Rounded so that right angles are exact. The error is far below a pixel.
    radians = math.radians(degrees)
    cosine, sine = round(math.cos(radians), 15), round(math.sin(radians), 15)
    x, y = width / 2, height / 2

    def coefficients(sign: float) -> Coefficients:
        s = sign * sine
        return cosine, -s, x - cosine * x + s * y, s, cosine, y - s * x - cosine * y

    return _affine(image, draws, coefficients)


def _along(coefficients: Callable[[float], Coefficients]):
    """Returns an operation that transforms by a signed strength, the sign being drawn."""
    return lambda image, strength, draws: _affine(
        image, draws, lambda sign: coefficients(sign * strength)
    )


def _whole(pixels: float) -> float:
    """Rounds a shift as Pillow does, halves up."""
    return math.floor(pixels + 0.5)


def _cutout(image, half_side, draws):
    """Greys a square of 2 · ``half_side`` pixels around a pixel, less what lies outside."""
    return tf.where(_square(image, draws, half_side), tf.constant(FILL_VALUE, tf.uint8), image)


def noise_square(image: tf.Tensor, seed: tf.Tensor, half_side: int) -> tf.Tensor:
    """Fills a square with uniform noise of 128 … 255: Cutout as in the published fine-tuning.

    That code draws 0 … 1 after a normalisation with (x − 127.5) / 127.5, hence the brightness.

    Args:
        image: uint8 [height, width, 3] of static shape.
        seed: The seed of the draw, int64 [2].
        half_side: Half the side in px of the square, which is placed as Cutout's.
    """
    draw_seed, noise_seed = tf.unstack(tf.random.split(seed))
    noise = tf.random.stateless_uniform(image.shape, noise_seed, 128, 256, tf.int32)
    square = _square(image, tf.random.stateless_uniform([NUM_DRAWS], draw_seed), half_side)
    return tf.where(square, tf.cast(noise, tf.uint8), image)


def _square(image, draws, half_side):
    """The mask of a square around a drawn pixel, bool [height, width, 1]."""
    inside = [
        tf.abs(tf.constant(np.arange(size) + 0.5, tf.float32) - tf.floor(draws[1 + axis] * size))
        < half_side
        for axis, size in enumerate(image.shape[:2])
    ]
    return (inside[0][:, tf.newaxis] & inside[1][tf.newaxis])[..., tf.newaxis]


OPS: tuple[Op, ...] = (
    Op("AutoContrast", _auto_contrast),
    Op("Equalize", _equalize),
    Op("Invert", lambda image, _argument, _draws: tf.bitwise.invert(image)),
    Op("Rotate", _rotate, lambda m, t, c: 30.0 * m / 10),
    Op("Posterize", _posterize, lambda m, t, c: min(int(m / 10 * 4), 8)),
    Op("Solarize", _solarize, lambda m, t, c: int(m / 10 * 256)),
    Op("Color", _color, lambda m, t, c: 1.8 * m / 10 + 0.1),
    Op("Contrast", _contrast, lambda m, t, c: 1.8 * m / 10 + 0.1),
    Op("Brightness", _brightness, lambda m, t, c: 1.8 * m / 10 + 0.1),
    Op("Sharpness", _sharpness, lambda m, t, c: 1.8 * m / 10 + 0.1),
    # Each row shifts by its distance from the top times the strength, or each column by that from
    # the left.
    Op("ShearX", _along(lambda x: (1.0, x, 0.0, 0.0, 1.0, 0.0)), lambda m, t, c: 0.3 * m / 10),
    Op("ShearY", _along(lambda x: (1.0, 0.0, 0.0, x, 1.0, 0.0)), lambda m, t, c: 0.3 * m / 10),
    Op(
        "TranslateX",
        _along(lambda pixels: (1.0, 0.0, _whole(pixels), 0.0, 1.0, 0.0)),
        lambda m, t, c: t * m / 10,
    ),
    Op(
        "TranslateY",
        _along(lambda pixels: (1.0, 0.0, 0.0, 0.0, 1.0, _whole(pixels))),
        lambda m, t, c: t * m / 10,
    ),
    Op("Cutout", _cutout, lambda m, t, c: int(m / 10 * c)),
    Op("SolarizeAdd", _solarize_add, lambda m, t, c: int(m / 10 * 110)),
)
"""The operations in the order of RandAugment's indices."""
