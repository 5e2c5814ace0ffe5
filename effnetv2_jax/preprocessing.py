"""The input families of the published networks, as data.

What reads and crops images (``data``) and what normalises them inside the compiled step
(``training``) must agree; both take it from here.
"""

import dataclasses
from typing import Any

from effnetv2_jax.runtime.errors import unknown_name

# An area_range that leaves out the random crop.
WHOLE_IMAGE = (1.0, 1.0)

_IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """One family.

    Attributes:
        name: as in ``EfficientNetSpec.preprocessing``.
        mean: subtracted from pixel values 0 … 255, per channel RGB.
        std: divided by, per channel.
        interpolation: ``bilinear`` or ``bicubic``.
        area_range: of a random training crop, over the image's area; WHOLE_IMAGE for none.
        aspect_ratio_range: width over height of a random training crop.
        min_object_covered: fraction of the image a random crop must cover.
        center_crop_below: evaluation sizes below this px crop the centre, size / (size +
            crop_margin) of the short side; larger ones resize the whole image.
        crop_margin: px at the evaluation size; 0 takes the whole central square.
        antialias: evaluation resizes with antialiasing, as Pillow does and so networks trained in
            PyTorch expect; training never does.
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


# Crops and resizing, with whatever values the pixels get then.
_V1_GEOMETRY: dict[str, Any] = {
    "interpolation": "bicubic",
    "area_range": (0.08, 1.0),
    "aspect_ratio_range": (3 / 4, 4 / 3),
    "min_object_covered": 0.1,
    "center_crop_below": float("inf"),
}

_VIT_GEOMETRY: dict[str, Any] = {
    "interpolation": "bicubic",
    "aspect_ratio_range": (3 / 4, 4 / 3),
    "min_object_covered": 0.0,
    "center_crop_below": 320,
    "crop_margin": 24,
    "antialias": True,
}

PREPROCESSING: dict[str, Preprocessing] = {
    family.name: family
    for family in (
        Preprocessing(
            name="v2",
            mean=(128.0,) * 3,
            std=(128.0,) * 3,
            interpolation="bilinear",
            area_range=(0.05, 1.0),
            aspect_ratio_range=(0.75, 1.33),
            min_object_covered=0.0,
            center_crop_below=320,
        ),
        Preprocessing(
            name="v1",
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            **_V1_GEOMETRY,
        ),
        # What the published code fine-tunes with: the whole image, resized.
        Preprocessing(
            name="finetune",
            mean=(127.5,) * 3,
            std=(127.5,) * 3,
            interpolation="bilinear",
            area_range=WHOLE_IMAGE,
            aspect_ratio_range=(0.75, 1.33),
            min_object_covered=0.0,
            center_crop_below=0,
        ),
        # ViT and DeiT: random crops as their authors train with, evaluation as timm's, 90 % of the
        # short side at 224 px and the whole image, resized, at 384 px.
        Preprocessing(
            name="vit",
            mean=(127.5,) * 3,
            std=(127.5,) * 3,
            area_range=(0.05, 1.0),
            **_VIT_GEOMETRY,
        ),
        Preprocessing(
            name="deit",
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            area_range=(0.08, 1.0),
            **_VIT_GEOMETRY,
        ),
        # V1's crops with (x − 127) / 128: the Lite checkpoints are meant for quantised devices.
        Preprocessing(
            name="lite",
            mean=(127.0,) * 3,
            std=(128.0,) * 3,
            **_V1_GEOMETRY,
        ),
        # The AdvProp checkpoints of V1.
        Preprocessing(
            name="advprop",
            mean=(127.5,) * 3,
            std=(127.5,) * 3,
            **_V1_GEOMETRY,
        ),
        # timm's efficientnet_*, and torchvision's V1, which crops each size by another margin.
        *(
            Preprocessing(
                name=name,
                mean=_IMAGENET_MEAN,
                std=_IMAGENET_STD,
                crop_margin=margin,
                antialias=True,
                **_V1_GEOMETRY,
            )
            for name, margin in (
                ("torch", 32),
                ("torch_20", 20),
                ("torch_16", 16),
                ("torch_4", 4),
                ("torch_0", 0),
            )
        ),
        # torchvision's V2-S and V2-M: resized to 384 and 480 px, and cropped to the same.
        Preprocessing(
            name="torchvision_v2",
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            crop_margin=0,
            antialias=True,
            **_V1_GEOMETRY | {"interpolation": "bilinear"},
        ),
        # torchvision's V2-L.
        Preprocessing(
            name="torchvision_v2_l",
            mean=(127.5,) * 3,
            std=(127.5,) * 3,
            crop_margin=0,
            antialias=True,
            **_V1_GEOMETRY,
        ),
    )
}


def get_preprocessing(name: str) -> Preprocessing:
    """The family of that name; raises UsageError for an unknown one."""
    if name not in PREPROCESSING:
        raise unknown_name("preprocessing", name, PREPROCESSING)
    return PREPROCESSING[name]
