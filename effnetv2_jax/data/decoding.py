"""From the bytes of an image to uint8 pixels of the right size: decode a box, resize, flip."""

import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import tensorflow as tf

IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib", ".webp"),
    *(".avif", ".tif", ".tiff", ".jp2", ".jxl", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""The endings, in lower case, of the files that are taken for images. Contents decide the rest."""

MAX_PIXELS = 178_956_970
"""The largest number of pixels of an image. Larger ones are refused undecoded; Pillow's limit."""

# The first row and column, the height and the width in px; int32 [4].
Box: TypeAlias = tf.Tensor

_SCALES = (1, 2, 4, 8)


def decode_box(
    encoded: tf.Tensor,
    choose_box: Callable[[tf.Tensor], Box],
    *,
    min_size: int | None = None,
) -> tf.Tensor:
    """Decodes a box of an image: JPEG, PNG, WebP, BMP or GIF (its first frame).

    The format is recognised by the content, not by the name of the file. Grey, CMYK, palette and
    16-bit images become RGB of 8 bits. Transparency is dropped.

    Args:
        encoded: A string, or uint8 [height, width, 3], from which the box is only cut.
        choose_box: A function of the image's shape, int32 [2], that returns a box inside of it.
        min_size: The number of px that both sides of the box must keep if a JPEG is decoded at a
            half, a quarter or an eighth of its size, in the domain of its cosine transform. None
            decodes at full size.

    Returns:
        uint8 [height, width, 3].

    Raises:
        tf.errors.InvalidArgumentError: When it runs, for an image that cannot be decoded or has
            more than MAX_PIXELS.
    """
    if encoded.dtype != tf.string:
        return _cut(encoded, choose_box(tf.shape(encoded)[:2]))
    is_jpeg = tf.cast(tf.io.is_jpeg(encoded), tf.int32)
    shapes = (_shape_in_other, lambda jpeg: tf.io.extract_jpeg_shape(jpeg, tf.int64)[:2])
    shape = switch(is_jpeg, shapes, encoded)
    # float64, because the product may overflow an integer.
    is_small = tf.reduce_prod(tf.cast(shape, tf.float64)) <= MAX_PIXELS
    # tf.debugging.Assert would put a conditional around it.
    check = tf.raw_ops.Assert(
        condition=is_small, data=["height and width are too large:", shape], summarize=2
    )
    with tf.control_dependencies([check]):
        box = choose_box(tf.cast(shape, tf.int32))
    scales: tuple[int, ...] = _SCALES[:1]
    decoder = is_jpeg
    if min_size is not None:
        scales = _SCALES
        fits = tf.reduce_min(box[2:]) // min_size
        halvings = tf.reduce_sum(tf.cast(fits >= tf.constant(_SCALES[1:]), tf.int32))
        decoder = is_jpeg * (1 + halvings)
    decoders = [functools.partial(_decode_jpeg, scale=scale) for scale in scales]
    return switch(decoder, [_decode_other, *decoders], encoded, box)


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
    image: tf.Tensor, image_size: int, interpolation: str, margin: int | None
) -> tf.Tensor:
    """Resizes with antialiasing and cuts the centre, as torchvision does with a Pillow image.

    Args:
        image: uint8 [height, width, 3].
        image_size: The side of the result in px.
        interpolation: ``bilinear`` or ``bicubic``.
        margin: The number of px that are cut off. The image is resized to a short side of
            image_size + margin, keeping its shape, and its centre is cut out. None resizes the
            whole image to a square.

    Returns:
        uint8 [image_size, image_size, 3]. Pillow, which rounds between rows and columns, differs by
        a level here and there.
    """
    shape = tf.shape(image)[:2]
    target = tf.constant([image_size, image_size])
    if margin is not None:
        target = (image_size + margin) * shape // tf.reduce_min(shape)
    begin = tf.round((tf.cast(target, tf.float32) - image_size) / 2)
    # Only the part that is cut out is computed.
    image = tf.raw_ops.ScaleAndTranslate(
        images=image[tf.newaxis],
        size=(image_size, image_size),
        scale=tf.cast(target / shape, tf.float32),
        translation=-begin,
        kernel_type=_KERNELS[interpolation],
        antialias=True,
    )[0]
    image = tf.cast(tf.clip_by_value(image, 0.0, 255.0) + 0.5, tf.uint8)
    return tf.ensure_shape(image, (image_size, image_size, 3))


def random_flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Flips left and right with probability ½, drawn from a seed int [2]."""
    flip = tf.random.stateless_uniform([], seed) < 0.5
    return tf.raw_ops.Reverse(tensor=image, dims=tf.stack([False, flip, False]))


def _decode_jpeg(encoded: tf.Tensor, box: Box, scale: int) -> tf.Tensor:
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


def _decode_other(encoded: tf.Tensor, box: Box) -> tf.Tensor:
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return _cut(tf.ensure_shape(image, (None, None, 3)), box)


def _cut(image: tf.Tensor, box: Box) -> tf.Tensor:
    top, left, height, width = tf.unstack(box)
    return image[top : top + height, left : left + width]


def _shape_in_other(encoded: tf.Tensor) -> tf.Tensor:
    """Height and width in the header of a PNG, GIF, BMP or WebP, int64 [2]. Others are 1 × 1."""
    length = 30
    start = tf.strings.substr(encoded, 0, length) + tf.constant(b"\0" * length)
    values = tf.cast(tf.io.decode_raw(start, tf.uint8)[:length], tf.int64)

    def starts_with(text: bytes, at: int = 0) -> tf.Tensor:
        return tf.reduce_all(values[at : at + len(text)] == list(text))

    def number(at: int, num_bytes: int, step: int) -> tf.Tensor:
        powers = [256**i for i in range(num_bytes)][::step]
        return tf.reduce_sum(values[at : at + num_bytes] * powers)

    little, big = functools.partial(number, step=1), functools.partial(number, step=-1)
    lossless = little(21, 4)
    shapes = (
        (starts_with(b"\x89PNG"), big(20, 4), big(16, 4)),
        (starts_with(b"GIF8"), little(8, 2), little(6, 2)),
        # The height of a BMP is negative if its first row is the top one.
        (starts_with(b"BM"), tf.minimum(little(22, 4), 2**32 - little(22, 4)), little(18, 4)),
        (starts_with(b"VP8 ", 12), little(28, 2) % 2**14, little(26, 2) % 2**14),
        (starts_with(b"VP8L", 12), 1 + lossless // 2**14 % 2**14, 1 + lossless % 2**14),
        (starts_with(b"VP8X", 12), 1 + little(27, 3), 1 + little(24, 3)),
    )
    shape = tf.ones([2], tf.int64)
    for matches, height, width in shapes:
        shape = tf.where(matches, tf.stack([height, width]), shape)
    return shape


def switch(
    index: tf.Tensor, branches: Sequence[Callable[..., tf.Tensor]], *operands: tf.Tensor
) -> tf.Tensor:
    """Calls ``branches[index]`` with the operands, and computes nothing else.

    ``tf.switch_case`` inlines the branches into the graph around them. The executor then visits
    every operation of every branch for every image, even if only to find that it is not needed.

    Args:
        index: The number of the branch, int32 []. The last one is taken if it is out of range.
        branches: Stateless functions of the operands only, with results of one dtype and rank.
        operands: The arguments of the branch.

    Returns:
        The result of the branch. Its static shape is the most specific one that fits all branches.
    """
    if tf.executing_eagerly():
        number = int(index)
        return branches[number if 0 <= number < len(branches) else -1](*operands)
    signature = [tf.TensorSpec(operand.shape, operand.dtype) for operand in operands]
    functions = [
        tf.function(branch, autograph=False).get_concrete_function(*signature)
        for branch in branches
    ]
    shape = functions[0].outputs[0].shape
    for function in functions[1:]:
        shape = shape.most_specific_compatible_shape(function.outputs[0].shape)
    (result,) = tf.raw_ops.StatelessCase(
        branch_index=index,
        input=list(operands),
        Tout=[functions[0].outputs[0].dtype],
        branches=functions,
        output_shapes=[shape],
    )
    return tf.ensure_shape(result, shape)
