"""The input families of the published networks, as data.

What reads and crops images (``data``) and what normalises them inside the compiled step
(``training``) must agree; both take it from here.
"""

import dataclasses

from effnetv2_jax.errors import unknown_name

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
        center_crop_below: evaluation sizes below this px crop the centre, size / (size + 32) of the
            short side; larger ones resize the whole image.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    area_range: tuple[float, float]
    aspect_ratio_range: tuple[float, float]
    min_object_covered: float
    center_crop_below: float


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
            interpolation="bicubic",
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            min_object_covered=0.1,
            center_crop_below=float("inf"),
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
        # ViT, with crops as its authors train it and evaluations as timm does, which end in the
        # whole image, resized, at 384 px.
        Preprocessing(
            name="vit",
            mean=(127.5,) * 3,
            std=(127.5,) * 3,
            interpolation="bicubic",
            area_range=(0.05, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            min_object_covered=0.0,
            center_crop_below=320,
        ),
        Preprocessing(
            name="deit",
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            interpolation="bicubic",
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            min_object_covered=0.0,
            center_crop_below=320,
        ),
        # V1's crops with (x − 127) / 128: the Lite checkpoints are meant for quantised devices.
        Preprocessing(
            name="lite",
            mean=(127.0,) * 3,
            std=(128.0,) * 3,
            interpolation="bicubic",
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            min_object_covered=0.1,
            center_crop_below=float("inf"),
        ),
    )
}


def get_preprocessing(name: str) -> Preprocessing:
    """The family of that name; raises UsageError for an unknown one."""
    if name not in PREPROCESSING:
        raise unknown_name("preprocessing", name, PREPROCESSING)
    return PREPROCESSING[name]
