"""The input families of the published networks, as data.

Both ``data``, which reads and crops images, and ``training``, which normalises them inside the
compiled step, take their numbers from here, so that they agree.

A family may be changed in its name: ``torch,mean=127.5,std=127.5,crop=0.9`` is ``torch`` with
another normalisation and another crop in evaluation.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from effnetv2_jax.runtime.errors import UsageError, unknown_name

# The area_range that turns the random crop off.
WHOLE_IMAGE = (1.0, 1.0)

CROP_MODES = ("center", "squash", "border")
"""The ways to make evaluation images square, with timm's names.

``center`` resizes the short side and cuts the centre out, ``squash`` resizes both sides to the same
length, ``border`` resizes the long side and fills what is missing with the mean.
"""

INTERPOLATIONS = ("bilinear", "bicubic")
"""The interpolations of resizing."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """An input family: how images are cropped, resized and normalised.

    Attributes:
        name: The name, as in ``EfficientNetSpec.preprocessing``.
        mean: The mean of the pixel values 0 … 255, per channel RGB; it is subtracted.
        std: The standard deviation per channel, by which values are divided.
        interpolation: The interpolation of resizing, one of ``INTERPOLATIONS``.
        area_range: The range of the area of a random training crop, as fractions of the image.
            WHOLE_IMAGE means no crop.
        aspect_ratio_range: The range of width over height of a random training crop.
        min_object_covered: The fraction of the image that a random crop must cover.
        center_crop_below: The evaluation size in px below which evaluation crops the central square
            of size / (size + crop_margin) of the short side. From there on crop_mode decides.
        crop_margin: The margin of that crop in px. 0 means the whole central square.
        antialias: True if evaluation resizes with antialiasing, as Pillow does and as networks
            trained in PyTorch expect. Training never does.
        crop: The fraction of the resized image's side that evaluation keeps at every size, as
            timm's ``crop_pct``. None means that center_crop_below and crop_margin decide.
        crop_mode: The way to make images square, one of ``CROP_MODES``, where no margin is cut.
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
    crop: float | None = None
    crop_mode: str = "center"
    exif_orientation: bool = False

    def evaluation(self, image_size: int) -> tuple[str, int]:
        """Returns the way that evaluation makes images square.

        Args:
            image_size: The side of the evaluation images in px.

        Returns:
            A name in ``CROP_MODES``, and the side in px that the image is resized to before its
            centre is cut out.
        """
        if self.crop is not None:
            return self.crop_mode, math.floor(image_size / self.crop)
        if image_size < self.center_crop_below:
            return "center", image_size + self.crop_margin
        return self.crop_mode, image_size


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
    "crop_mode": "squash",
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
    # ViT and DeiT train with the random crops of their authors. Evaluation is timm's: the central
    # square of 90 % of the short side at 224 px, and of all of it at 384 px.
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
    """Returns an input family.

    >>> get_preprocessing("torch,mean=127.5,crop=0.9").evaluation(224)
    ('center', 248)

    Args:
        name: A name in ``PREPROCESSING``, with changes after commas: ``mean`` and ``std`` of the
            pixel values 0 … 255, one number or three with ``/`` between them, and
            ``interpolation``. Families that resize with antialiasing take ``crop`` and
            ``crop_mode`` too.

    Raises:
        UsageError: If the name, a change or its value is not one of these.
    """
    base, *changes = name.split(",")
    if base not in PREPROCESSING:
        raise unknown_name("preprocessing", base, PREPROCESSING)
    family = PREPROCESSING[base]
    fields: dict[str, Any] = {}
    for change in changes:
        field, _, value = change.partition("=")
        if field not in _FIELDS:
            raise unknown_name(f"change of preprocessing {name!r}:", field, _FIELDS)
        if field.startswith("crop") and not family.antialias:
            taking = ", ".join(x.name for x in PREPROCESSING.values() if x.antialias)
            raise UsageError(f"preprocessing {base!r} takes no {field}: {taking} do")
        read, allowed = _FIELDS[field]
        try:
            fields[field] = read(value)
        except ValueError:
            raise UsageError(
                f"{field} of preprocessing {name!r} must be {allowed}, got {value!r}"
            ) from None
    return dataclasses.replace(family, name=name, **fields)


def name_preprocessing(
    bases: Iterable[str], fields: Mapping[str, Any], image_size: int | None = None
) -> str:
    """Returns the shortest name of the preprocessing with given fields.

    Args:
        bases: The names in ``PREPROCESSING`` to begin with; the one with the fewest changes is
            taken.
        fields: The values of fields that a name may change; the others are the family's.
        image_size: The side of the evaluation images in px. A crop that is the family's at this
            size is not named. None names every crop.
    """

    def changes(base: str) -> list[str]:
        family = PREPROCESSING[base]
        changed = dataclasses.replace(family, **fields)
        different = {name for name, x in fields.items() if getattr(family, name) != x}
        if image_size and changed.evaluation(image_size) == family.evaluation(image_size):
            different -= {"crop", "crop_mode"}
        return [f"{x}={_text(fields[x])}" for x in _FIELDS if x in different]

    return min((",".join([base, *changes(base)]) for base in bases), key=lambda x: x.count(","))


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(str(float(x)) for x in (value if len(set(value)) > 1 else value[:1]))
    return str(value)


def _triple(text: str) -> tuple[float, ...]:
    values = tuple(_number(x) for x in text.split("/"))
    if len(values) not in (1, 3):
        raise ValueError
    return values * (3 // len(values))


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _positive(text: str) -> tuple[float, ...]:
    values = _triple(text)
    if min(values) <= 0:
        raise ValueError
    return values


def _fraction(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise ValueError
    return value


def _one_of(allowed: tuple[str, ...]) -> tuple[Callable[[str], Any], str]:
    return lambda text: allowed[allowed.index(text)], " or ".join(allowed)


# The fields that a name may change: how a value is read, and which ones are allowed.
_FIELDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "mean": (_triple, "one number, or three with / between them"),
    "std": (_positive, "one number above 0, or three with / between them"),
    "interpolation": _one_of(INTERPOLATIONS),
    "crop": (_fraction, "above 0 and at most 1"),
    "crop_mode": _one_of(CROP_MODES),
}
