"""Images for a network's inference, prepared with NumPy and Pillow, without TensorFlow.

``make_transform`` gives what evaluation shows a network: the same crop, resizing and normalisation
as ``data.images.eval_image``, to one level of 255.
"""

import dataclasses
import io
import os
from typing import Any, TypeAlias

import numpy as np

from effnetv2_jax.preprocessing import Preprocessing, get_preprocessing
from effnetv2_jax.runtime.errors import UsageError

Image: TypeAlias = Any
"""A path, the bytes of a file, a Pillow image, or uint8 [height, width, 3]."""


@dataclasses.dataclass(frozen=True)
class Transform:
    """A function from one image to what a network sees; see ``make_transform``.

    Attributes:
        preprocessing: The input family.
        image_size: The side of the result in px.
    """

    preprocessing: Preprocessing
    image_size: int

    def __call__(self, image: Image) -> np.ndarray:
        """Returns the normalised image, float32 [image_size, image_size, 3]."""
        mean, std = (np.float32(getattr(self.preprocessing, name)) for name in ("mean", "std"))
        return (self.pixels(image).astype(np.float32) - mean) / std

    def pixels(self, image: Image) -> np.ndarray:
        """Returns the image before it is normalised, uint8 [image_size, image_size, 3].

        Raises:
            UsageError: If the image cannot be read, or is an array of another shape or dtype.
        """
        family, size = self.preprocessing, self.image_size
        mode, side = family.evaluation(size)
        pixels = _decoded(image)
        shape = np.array(pixels.shape[:2])
        if not family.antialias:
            if mode == "center":
                pixels = _central_square(pixels, size / side)
            scales, begin = size / np.array(pixels.shape[:2]), np.zeros(2)
        else:
            if mode == "center":
                target = side * shape // shape.min()
            elif mode == "border":
                target = np.maximum(np.round(side * shape / shape.max()), 1)
            else:
                target = np.array([side, side])
            surplus = target - size
            begin = np.where(surplus < 0, -(-surplus // 2), np.round(surplus / 2))
            scales = target / shape
        resized = pixels.astype(np.float32)
        for axis in (0, 1):
            weights = _weights(
                pixels.shape[axis], size, scales[axis], begin[axis], family.interpolation,
                family.antialias,
            )  # fmt: skip
            resized = np.swapaxes(np.tensordot(weights, resized, (1, 0)), 0, 1)
        result = (resized.clip(0, 255) + np.float32(0.5)).astype(np.uint8)
        if mode == "border":
            rows, columns = (
                (np.arange(size) >= -first) & (np.arange(size) < end - first)
                for first, end in zip(begin, target, strict=True)
            )
            result[~(rows[:, None] & columns)] = [round(x) for x in family.mean]
        return result


def make_transform(model: Any, image_size: int | None = None) -> Transform:
    """Makes the function that prepares one image for a model's inference.

    It needs Pillow, and no TensorFlow. Images that are turned by their EXIF data stay as they are
    stored, as in evaluation.

    >>> from effnetv2_jax import create_model
    >>> model = create_model("efficientnetv2-tiny", num_classes=10)
    >>> transform = make_transform(model)
    >>> image = transform(np.zeros((48, 64, 3), np.uint8))
    >>> image.shape, image.dtype, float(image.max())
    ((32, 32, 3), dtype('float32'), -1.0)

    Args:
        model: A model or a spec, whose ``preprocessing`` and ``eval_size`` are used. Weights bring
            these along, so load them first.
        image_size: The side of the result in px. None takes the spec's ``eval_size``.

    Returns:
        A function from a path, the bytes of a file, a Pillow image or uint8 [height, width, 3] to
        float32 [image_size, image_size, 3].

    Raises:
        UsageError: If the model is for other than three channels, or image_size is below 1.
    """
    spec = getattr(model, "spec", model)
    image_size = spec.eval_size if image_size is None else image_size
    if image_size < 1:
        raise UsageError(f"image_size must be at least 1 px, got {image_size}")
    if spec.in_channels != 3:
        raise UsageError(
            f"a transform is for images of 3 channels, but {spec.name} has in_channels="
            f"{spec.in_channels}"
        )
    return Transform(get_preprocessing(spec.preprocessing), image_size)


def _decoded(image: Image) -> np.ndarray:
    """Returns uint8 [height, width, 3]."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise UsageError(
                f"an image must be uint8 [height, width, 3], got {image.dtype} {list(image.shape)}"
            )
        return image
    try:
        import PIL.Image
    except ModuleNotFoundError as error:
        raise UsageError("reading images needs Pillow: pip install pillow") from error
    if isinstance(image, PIL.Image.Image):
        opened = image
    else:
        shown = "these bytes" if isinstance(image, bytes) else repr(os.fspath(image))
        try:
            opened = PIL.Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
            opened.load()
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            raise UsageError(f"{shown} cannot be read as an image: {error}") from error
    if opened.mode.startswith("I"):  # 16 bits, of which the upper 8 count
        grey = (np.asarray(opened).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    return np.asarray(opened.convert("RGB"))


def _central_square(pixels: np.ndarray, fraction: float) -> np.ndarray:
    """Cuts out the central square with this fraction of the short side."""
    height, width = pixels.shape[:2]
    side = max(int(np.float32(min(height, width)) * np.float32(fraction)), 1)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Returns Keys' cubic with a = −½, as Pillow has it."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


_KERNELS = {"bilinear": _triangle, "bicubic": _cubic}


def _weights(
    old: int, new: int, scale: float, begin: float, interpolation: str, antialias: bool
) -> np.ndarray:
    """Returns the weights of old pixels in new ones, float32 [new, old].

    Args:
        old: The number of old pixels along the axis.
        new: The number of new pixels.
        scale: The length of the whole axis after resizing over that before.
        begin: The first pixel of the resized axis that is computed. Pixels beyond its ends get no
            weights.
        interpolation: A name in ``preprocessing.INTERPOLATIONS``.
        antialias: Widens the kernel where the axis shrinks.
    """
    centers = (np.arange(new) + 0.5 + begin) / scale
    width = max(1 / scale, 1) if antialias else 1
    weights = _KERNELS[interpolation]((np.arange(old) + 0.5 - centers[:, None]) / width)
    inside = ((centers >= 0) & (centers <= old))[:, None]
    sums = np.where(inside, weights.sum(1, keepdims=True), 1)
    return np.where(inside, weights / sums, 0).astype(np.float32)
