"""The input families of the published networks, as data.

Both ``data``, which reads and crops images, and ``training``, which normalises them inside the
compiled step, take their numbers from here, so that they agree.
"""

import dataclasses
from typing import Any

from effnetv2_jax.runtime.errors import unknown_name

# The area_range that turns the random crop off.
WHOLE_IMAGE = (1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """An input family: how images are cropped, resized and normalised.

    Attributes:
        name: The name, as in ``EfficientNetSpec.preprocessing``.
        mean: The mean of the pixel values 0 … 255, per channel RGB; it is subtracted.
        std: The standard deviation per channel, by which values are divided.
        interpolation: The interpolation of resizing, ``bilinear`` or ``bicubic``.
        area_range: The range of the area of a random training crop, as fractions of the image.
            WHOLE_IMAGE means no crop.
        aspect_ratio_range: The range of width over height of a random training crop.
        min_object_covered: The fraction of the image that a random crop must cover.
        center_crop_below: The evaluation size in px from which on the whole image is resized. Below
            it, evaluation crops the central square of size / (size + crop_margin) of the short
            side.
        crop_margin: The margin of that crop in px. 0 means the whole central square.
        antialias: True if evaluation resizes with antialiasing, as Pillow does and as networks
            trained in PyTorch expect. Training never does.
        exif_orientation: True if images are turned as their EXIF says before anything else.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    area_range: tuple[float, float]
    aspect_ratio_range: tuple[float, float]
    min_object_covered: float
    center_crop_below: float
    crop_margin: int = 32
    antialias: bool = False
    exif_orientation: bool = False


# Normalisations that several families share: ImageNet's own mean, and (x − 127.5) / 127.5.
_IMAGENET: dict[str, Any] = {
    "mean": (0.485 * 255, 0.456 * 255, 0.406 * 255),
    "std": (0.229 * 255, 0.224 * 255, 0.225 * 255),
}
_HALF: dict[str, Any] = {"mean": (127.5,) * 3, "std": (127.5,) * 3}

# The other fields that several families share.
_V2: dict[str, Any] = {
    "mean": (128.0,) * 3,
    "std": (128.0,) * 3,
    "interpolation": "bilinear",
    "aspect_ratio_range": (0.75, 1.33),
    "min_object_covered": 0.0,
}
_V1: dict[str, Any] = {
    "interpolation": "bicubic",
    "area_range": (0.08, 1.0),
    "aspect_ratio_range": (3 / 4, 4 / 3),
    "min_object_covered": 0.1,
    "center_crop_below": float("inf"),
}
_TORCH = _V1 | {"antialias": True}
_VIT: dict[str, Any] = {
    "interpolation": "bicubic",
    "aspect_ratio_range": (3 / 4, 4 / 3),
    "min_object_covered": 0.0,
    "center_crop_below": 320,
    "crop_margin": 24,
    "antialias": True,
}

_FAMILIES: dict[str, dict[str, Any]] = {
    "v2": _V2 | {"area_range": (0.05, 1.0), "center_crop_below": 320},
    "v1": _IMAGENET | _V1,
    # The published code fine-tunes with the whole image, resized.
    "finetune": _V2 | _HALF | {"area_range": WHOLE_IMAGE, "center_crop_below": 0},
    # ViT and DeiT train with the random crops of their authors. Evaluation is timm's: 90 % of the
    # short side at 224 px, and the whole image, resized, at 384 px.
    "vit": _HALF | _VIT | {"area_range": (0.05, 1.0)},
    "deit": _IMAGENET | _VIT | {"area_range": (0.08, 1.0)},
    # V1's crops with (x − 127) / 128, as the Lite checkpoints are for quantised devices.
    "lite": _V1 | {"mean": (127.0,) * 3, "std": (128.0,) * 3},
    # The AdvProp checkpoints of V1.
    "advprop": _HALF | _V1,
    # timm's efficientnet_*, and torchvision's V1, which has a different margin for each size.
    "torch": _IMAGENET | _TORCH,
    "torch_20": _IMAGENET | _TORCH | {"crop_margin": 20},
    "torch_16": _IMAGENET | _TORCH | {"crop_margin": 16},
    "torch_4": _IMAGENET | _TORCH | {"crop_margin": 4},
    "torch_0": _IMAGENET | _TORCH | {"crop_margin": 0},
    # torchvision's V2-S and V2-M: resized to 384 and 480 px, and cropped to the same size.
    "torchvision_v2": _IMAGENET | _TORCH | {"crop_margin": 0, "interpolation": "bilinear"},
    # torchvision's V2-L.
    "torchvision_v2_l": _HALF | _TORCH | {"crop_margin": 0},
}

PREPROCESSING = {name: Preprocessing(name, **fields) for name, fields in _FAMILIES.items()}


def get_preprocessing(name: str) -> Preprocessing:
    """Returns the input family of a name; raises UsageError for an unknown one."""
    if name not in PREPROCESSING:
        raise unknown_name("preprocessing", name, PREPROCESSING)
    return PREPROCESSING[name]
