"""From the bytes of an image to uint8 pixels of the right size: decode a box, resize, flip.

TensorFlow decodes JPEG and PNG. Pillow decodes everything else, because TensorFlow has only some of
the formats and misreads some of their variants.
"""

import collections
import functools
import io
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib", ".webp"),
    *(".avif", ".tif", ".tiff", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""The endings, in lower case, of the files that are taken for images. Contents decide the rest."""

MAX_PIXELS = 178_956_970
"""The largest number of pixels of an image. Larger ones are refused undecoded; Pillow's limit."""

# The first row and column, the height and the width in px; int32 [4].
Box: TypeAlias = tf.Tensor

_SCALES = (1, 2, 4, 8)

# The formats that Pillow may decode. It has more, and starts other programs for some of those.
_PILLOW_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"),
)
# Formats of which people have files, and which are not decoded: bytes among the first 12.
_OTHER_FORMATS = {b"\xff\x0a": "JPEG XL", b"JXL ": "JPEG XL", b"ftyphe": "HEIC", b"ftypmi": "HEIC"}
_ORIENTATION = 0x0112  # the tag in EXIF


def decode_box(
    encoded: tf.Tensor,
    choose_box: Callable[[tf.Tensor], Box],
    *,
    min_size: int | None = None,
    exif_orientation: bool = False,
) -> tf.Tensor:
    """Decodes a box of an image of a format in ``IMAGE_ENDINGS``, or of the first of its frames.

    The format is recognised by the content, not by the name of the file. The pixels are those of
    Pillow's ``convert("RGB")``: grey, CMYK and palette images become RGB, and transparency is
    dropped. The exception is grey with 16 bits, where Pillow clips at 255: its upper eight bits are
    taken, as Pillow does for colour with 16 bits.

    Args:
        encoded: A string, or uint8 [height, width, 3], from which the box is only cut.
        choose_box: A function of the image's shape, int32 [2], that returns a box inside of it.
        min_size: The number of px that both sides of the box must keep if a JPEG is decoded at a
            half, a quarter or an eighth of its size, in the domain of its cosine transform. None
            decodes at full size.
        exif_orientation: Turns the image as its EXIF says, as Pillow's ``exif_transpose`` does. The
            box is one of the turned image.

    Returns:
        uint8 [height, width, 3].

    Raises:
        tf.errors.InvalidArgumentError: When it runs, for an image that cannot be decoded or has
            more than MAX_PIXELS.
    """
    if encoded.dtype != tf.string:
        return _cut(encoded, choose_box(tf.shape(encoded)[:2]))
    is_png = tf.strings.substr(encoded, 0, 8) == b"\x89PNG\r\n\x1a\n"
    kind = tf.where(tf.io.is_jpeg(encoded), 2, tf.cast(is_png, tf.int32))
    read = [functools.partial(f, turn=exif_orientation) for f in (_read_other, _read_png)]
    shape, orientation, decoder, pixels = switch(
        kind, [*read, functools.partial(_read_jpeg, turn=exif_orientation)], encoded
    )
    if exif_orientation:
        turned_shape = tf.where(orientation >= 5, shape[::-1], shape)
        box = _turn_back(choose_box(turned_shape), turned_shape, orientation)
    else:
        box = choose_box(shape)
    scales: tuple[int, ...] = _SCALES[:1]
    if min_size is not None:
        scales = _SCALES
        fits = tf.reduce_min(box[2:]) // min_size
        halvings = tf.reduce_sum(tf.cast(fits >= tf.constant(_SCALES[1:]), tf.int32))
        decoder += tf.where(decoder == _JPEG, halvings, 0)
    decoders = [functools.partial(_decode_jpeg, scale=scale) for scale in scales]
    image = switch(decoder, [_cut_other, _cut_decoded, *decoders], encoded, pixels, box)
    return _turn(image, orientation) if exif_orientation else image


def random_box(
    shape: tf.Tensor,
    seed: tf.Tensor,
    *,
    area_range: tuple[float, float],
    aspect_ratio_range: tuple[float, float],
    min_object_covered: float,
) -> Box:
    """Draws Inception's crop: a random box of random area and shape.

    Args:
        shape: The height and width of the image in px, int32 [2].
        seed: The seed of the draw, int [2].
        area_range, aspect_ratio_range, min_object_covered: As in ``Preprocessing``.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.concat([shape, [3]], axis=0),
        bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=seed,
        min_object_covered=min_object_covered,
        aspect_ratio_range=aspect_ratio_range,
        area_range=area_range,
    )
    return tf.concat([begin[:2], size[:2]], axis=0)


def central_box(shape: tf.Tensor, image_size: int, margin: int = 32) -> Box:
    """Returns the central square with image_size / (image_size + margin) of the short side."""
    short_side = tf.cast(tf.reduce_min(shape), tf.float32)
    # A margin suits ImageNet's photographs, but an image of a few pixels must keep one of them.
    side = tf.maximum(tf.cast(short_side * (image_size / (image_size + margin)), tf.int32), 1)
    return tf.concat([(shape - side) // 2, [side, side]], axis=0)


def whole_box(shape: tf.Tensor) -> Box:
    """Returns the box that is all of an image."""
    return tf.concat([[0, 0], shape], axis=0)


def resize(image: tf.Tensor, image_size: int, interpolation: str) -> tf.Tensor:
    """Resizes to uint8 [image_size, image_size, 3], without antialiasing, as published runs did."""
    # The kernel is faster on float32, because it reads every pixel several times.
    image = tf.cast(image, tf.float32)
    image = tf.image.resize(image, (image_size, image_size), method=interpolation)
    if interpolation != "bilinear":  # which stays within the range of its pixels
        image = tf.clip_by_value(image, 0.0, 255.0)
    image = tf.cast(image + 0.5, tf.uint8)
    return tf.ensure_shape(image, (image_size, image_size, 3))


# The names of tf.image.resize's kernels with antialiasing. Bicubic is Pillow's, a = −½.
_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}


def resize_as_pillow(
    image: tf.Tensor,
    image_size: int,
    interpolation: str,
    mode: str,
    side: int,
    fill: tuple[float, float, float],
) -> tf.Tensor:
    """Resizes with antialiasing and cuts the centre, as torchvision and timm do with Pillow.

    Args:
        image: uint8 [height, width, 3].
        image_size: The side of the result in px.
        interpolation: ``bilinear`` or ``bicubic``.
        mode: ``center`` resizes the short side to ``side``, ``border`` the long one, both keeping
            the image's shape; ``squash`` resizes both sides.
        side: The side in px of the resized image, from which the centre is cut out.
        fill: The colour 0 … 255 beside an image that is too small for the result.

    Returns:
        uint8 [image_size, image_size, 3]. Pillow, which rounds between rows and columns, differs by
        a level here and there.
    """
    shape = tf.shape(image)[:2]
    if mode == "squash":
        target = tf.constant([side, side])
    elif mode == "center":
        target = side * shape // tf.reduce_min(shape)
    else:
        target = tf.cast(tf.round(side * shape / tf.reduce_max(shape)), tf.int32)
        target = tf.maximum(target, 1)
    surplus = target - image_size
    begin = tf.where(
        surplus < 0, -(-surplus // 2), tf.cast(tf.round(tf.cast(surplus, tf.float32) / 2), tf.int32)
    )
    # Only the part that is cut out is computed.
    image = tf.raw_ops.ScaleAndTranslate(
        images=image[tf.newaxis],
        size=(image_size, image_size),
        scale=tf.cast(target / shape, tf.float32),
        translation=-tf.cast(begin, tf.float32),
        kernel_type=_KERNELS[interpolation],
        antialias=True,
    )[0]
    image = tf.cast(tf.clip_by_value(image, 0.0, 255.0) + 0.5, tf.uint8)
    if mode == "border":
        rows, columns = (
            (tf.range(image_size) >= -begin[i]) & (tf.range(image_size) < target[i] - begin[i])
            for i in range(2)
        )
        inside = rows[:, tf.newaxis, tf.newaxis] & columns[:, tf.newaxis]
        image = tf.where(inside, image, tf.constant([round(x) for x in fill], tf.uint8))
    return tf.ensure_shape(image, (image_size, image_size, 3))


def random_flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Flips left and right with probability ½, drawn from a seed int [2]."""
    flip = tf.random.stateless_uniform([], seed) < 0.5
    return tf.raw_ops.Reverse(tensor=image, dims=tf.stack([False, flip, False]))


# The second half of decoding, when the box is known. JPEGs are decoded at a scale from there on.
_OTHER, _DECODED, _JPEG = range(3)

_PIXELS = tf.TensorSpec((None, None, 3), tf.uint8)

# An image's shape in px, int32 [2], its EXIF orientation, which is 1 if it need not be turned, the
# number of what is still to be done, and the pixels if they are decoded, uint8 [height, width, 3].
_Opened: TypeAlias = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]


def _read_jpeg(encoded: tf.Tensor, turn: bool) -> _Opened:
    shape = tf.io.extract_jpeg_shape(encoded, tf.int64)
    # TensorFlow rounds CMYK down, and inverts it if Adobe's name is not there, unlike others.
    decoder = tf.where(shape[2] == 4, _OTHER, _JPEG)
    pixels = tf.zeros([0, 0, 3], tf.uint8)
    return _checked(shape[:2]), _orientation(encoded, turn), decoder, pixels


def _read_png(encoded: tf.Tensor, turn: bool) -> _Opened:
    header = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False)
    with tf.control_dependencies([_checked(header)]):
        pixels = tf.io.decode_png(encoded, channels=3)
    return tf.shape(pixels)[:2], _orientation(encoded, turn), tf.constant(_DECODED), pixels


def _read_other(encoded: tf.Tensor, turn: bool) -> _Opened:
    pixels = _in_python(_decode_by_pillow, _PIXELS)(encoded, tf.constant(turn))
    return tf.shape(pixels)[:2], tf.constant(1), tf.constant(_DECODED), pixels


def _checked(shape: tf.Tensor) -> tf.Tensor:
    """Returns a shape as int32 [2] if an image may have it."""
    # float64, because the product may overflow an integer.
    is_small = tf.reduce_prod(tf.cast(shape, tf.float64)) <= MAX_PIXELS
    # tf.debugging.Assert would put a conditional around it.
    check = tf.raw_ops.Assert(
        condition=is_small, data=["height and width are too large:", shape], summarize=2
    )
    with tf.control_dependencies([check]):
        return tf.identity(tf.cast(shape, tf.int32))


def _orientation(encoded: tf.Tensor, turn: bool) -> tf.Tensor:
    if not turn:
        return tf.constant(1)
    return _in_python(_exif_orientation, tf.TensorSpec((), tf.int32))(encoded)


@functools.cache
def _in_python(function: Callable, spec: tf.TensorSpec) -> Callable[..., tf.Tensor]:
    """Makes a TensorFlow function of one without state that takes ``bytes`` and NumPy values."""

    # Called eagerly, tf.numpy_function would pass other types and raise other errors.
    @tf.function(autograph=False)
    def call(*arguments: tf.Tensor) -> tf.Tensor:
        result = tf.numpy_function(function, arguments, spec.dtype, stateful=False)
        return tf.ensure_shape(result, spec.shape)

    return call


def _decode_jpeg(encoded: tf.Tensor, pixels: tf.Tensor, box: Box, scale: int) -> tf.Tensor:
    if scale > 1:
        # Both borders are rounded, so the box moves by at most half a pixel of the scaled image.
        begin = (box[:2] + scale // 2) // scale
        end = tf.maximum((box[:2] + box[2:] + scale // 2) // scale, begin + 1)
        box = tf.concat([begin, end - begin], axis=0)
    return tf.io.decode_and_crop_jpeg(
        encoded,
        box,
        channels=3,
        ratio=scale,
        dct_method="INTEGER_ACCURATE",  # as in Pillow
    )


def _cut_decoded(encoded: tf.Tensor, pixels: tf.Tensor, box: Box) -> tf.Tensor:
    return _cut(pixels, box)


def _cut_other(encoded: tf.Tensor, pixels: tf.Tensor, box: Box) -> tf.Tensor:
    return _cut(_read_other(encoded, turn=False)[-1], box)


def _cut(image: tf.Tensor, box: Box) -> tf.Tensor:
    top, left, height, width = tf.unstack(box)
    return image[top : top + height, left : left + width]


def _flips(orientation: tf.Tensor) -> tf.Tensor:
    """Tells if an orientation of EXIF mirrors rows and columns, after it transposes from 5 on."""
    rows, columns = [3, 4, 7, 8], [2, 3, 6, 7]
    return tf.stack([tf.reduce_any(orientation == tf.constant(x)) for x in (rows, columns)])


def _turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns pixels [height, width, 3] as an orientation of EXIF, 1 … 8, says."""
    image = tf.transpose(image, tf.where(orientation >= 5, [1, 0, 2], [0, 1, 2]))
    return tf.raw_ops.Reverse(tensor=image, dims=tf.pad(_flips(orientation), [[0, 1]]))


def _turn_back(box: Box, shape: tf.Tensor, orientation: tf.Tensor) -> Box:
    """Finds a box of a turned image, which has this shape, in the image as it is stored."""
    begin, size = box[:2], box[2:]
    begin = tf.where(_flips(orientation), shape - begin - size, begin)
    return tf.where(
        orientation >= 5,
        tf.concat([begin[::-1], size[::-1]], axis=0),
        tf.concat([begin, size], axis=0),
    )


def _exif_orientation(encoded: bytes) -> np.int32:
    """Returns the EXIF orientation of a JPEG or PNG, int32 []."""
    # Pillow decodes all of a PNG to find out that there is no EXIF.
    if encoded.startswith(b"\x89PNG") and not any(
        key in encoded for key in (b"eXIf", b"exif", b"XML:com.adobe.xmp")
    ):
        return np.int32(1)
    try:
        with Image.open(io.BytesIO(encoded), formats=_PILLOW_FORMATS) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Decoding will say what is wrong.
        return np.int32(1)
    return np.int32(orientation if orientation in range(1, 9) else 1)


class _Counts:
    """Counts the images that Pillow decodes, by format, and logs it at 1, 10, 100, …."""

    def __init__(self):
        self._lock = threading.Lock()
        self._counts = collections.Counter[str]()

    def add(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1
            count = self._counts[name]
        if str(count).strip("0") == "1":
            what = "image" if count == 1 else "images"
            logging.info("%d %s %s so far, decoded by Pillow", count, name, what)


_counts = _Counts()


def _decode_by_pillow(encoded: bytes, turn: bool) -> np.ndarray:
    """Decodes an image, or the first of its frames, to uint8 [height, width, 3].

    Raises:
        ValueError: If it cannot be decoded, which TensorFlow turns into InvalidArgumentError.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=_PILLOW_FORMATS) as image:
            name = image.format
            if turn:
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I;16"):
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                pixels = np.repeat(grey[..., np.newaxis], 3, axis=-1)
            else:
                pixels = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        start = encoded[:12]
        found = [name for key, name in _OTHER_FORMATS.items() if key in start]
        if found:
            raise ValueError(f"{found[0]} cannot be read: convert it to JPEG or PNG") from None
        raise ValueError("it is no image of a known format") from None
    except Exception as error:  # Pillow's decoders raise nearly everything.
        raise ValueError(str(error) or type(error).__name__) from None
    _counts.add(str(name))
    return pixels


def switch(index: tf.Tensor, branches: Sequence[Callable[..., Any]], *operands: tf.Tensor) -> Any:
    """Calls ``branches[index]`` with the operands, and computes nothing else.

    ``tf.switch_case`` inlines the branches into the graph around them. The executor then visits
    every operation of every branch for every image, even if only to find that it is not needed.

    Args:
        index: The number of the branch, int32 []. The last one is taken if it is out of range.
        branches: Stateless functions of the operands only. Each returns a tensor, or a tuple of
            tensors, with the same dtypes and ranks as the others.
        operands: The arguments of the branch.

    Returns:
        The result of the branch. Static shapes are the most specific ones that fit all branches.
    """
    if tf.executing_eagerly():
        number = int(index)
        return branches[number if 0 <= number < len(branches) else -1](*operands)
    signature = [tf.TensorSpec(operand.shape, operand.dtype) for operand in operands]
    functions = [
        tf.function(branch, autograph=False).get_concrete_function(*signature)
        for branch in branches
    ]
    shapes = [
        functools.reduce(tf.TensorShape.most_specific_compatible_shape, alternatives)
        for alternatives in zip(*([x.shape for x in f.outputs] for f in functions), strict=True)
    ]
    results = tf.raw_ops.StatelessCase(
        branch_index=index,
        input=list(operands),
        Tout=[x.dtype for x in functions[0].outputs],
        branches=functions,
        output_shapes=shapes,
    )
    results = [tf.ensure_shape(x, shape) for x, shape in zip(results, shapes, strict=True)]
    return tf.nest.pack_sequence_as(functions[0].structured_outputs, results)
