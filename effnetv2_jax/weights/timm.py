"""timm's networks by name, and what a file says of itself: how its network pads and sees images.

``timm_networks.csv`` has a row for every name with a tag that timm knows of our networks;
``tests/golden/make_timm_networks.py`` wrote it. A name that is not in it says nothing.
"""

import csv
import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from effnetv2_jax.preprocessing import get_preprocessing, name_preprocessing
from effnetv2_jax.runtime.errors import UsageError, unknown_name

_FILE = pathlib.Path(__file__).with_name("timm_networks.csv")
_SUM = re.compile(r"-[0-9a-f]{8}$")
# Arguments of timm's networks that do not change what their weights compute.
_HARMLESS = re.compile(r"(dynamic_|strict_)?img_size|num_classes|in_chans|.*drop(_path)?_rate")
# Another network of timm, which has the shapes of one of ours but blurs where it strides.
_OTHER = re.compile(r"efficientnet_blur_b0([.-].*)?")
# The values of other arguments that networks have here, by the beginning of timm's names.
_USUAL: dict[str, dict[str, Any]] = {
    "efficientnet": {"global_pool": "avg", "bn_eps": 1e-5},
    "tf_": {"global_pool": "avg", "bn_eps": 1e-3},
    "vit": {"global_pool": "token"},
    "deit": {"global_pool": "token"},
}


@dataclasses.dataclass(frozen=True)
class Images:
    """The images that a network of timm expects.

    Attributes:
        train_size: The side of training images in px.
        eval_size: The side of evaluation images in px.
        crop: The fraction of the resized image's side that evaluation keeps.
        crop_mode: A name in ``preprocessing.CROP_MODES``.
        interpolation: A name in ``preprocessing.INTERPOLATIONS``.
        mean: The mean of the values 0 … 1 per channel RGB.
        std: The standard deviation per channel.
    """

    train_size: int = 224
    eval_size: int = 224
    crop: float = 0.875
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def fields(self, architecture: str) -> dict[str, Any]:
        """Returns the fields of a spec that say so, for timm's name of a network."""
        bases = ("deit", "vit") if architecture.startswith(("deit", "vit")) else ("torch",)
        normal = {name: tuple(255 * x for x in getattr(self, name)) for name in ("mean", "std")}
        crops = {name: getattr(self, name) for name in ("interpolation", "crop", "crop_mode")}
        preprocessing = name_preprocessing(bases, normal | crops, self.eval_size)
        sizes = {"train_size": self.train_size, "eval_size": self.eval_size}
        # The position embedding tells a ViT's size.
        return {"preprocessing": preprocessing} | (sizes if bases == ("torch",) else {})


@dataclasses.dataclass(frozen=True)
class Told:
    """The answer to which network of timm a file holds.

    Attributes:
        architecture: timm's name of the network without a tag; None if it is not known.
        images: The images that it expects; None if they are not known.
        by: The source of the answer, for people.
        by_name: True if only the name of the file or its folder says so.
    """

    architecture: str | None = None
    images: Images | None = None
    by: str = ""
    by_name: bool = False


@functools.cache
def _rows() -> tuple[dict[str, str], ...]:
    with _FILE.open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


@functools.cache
def networks() -> dict[str, dict[str, Images]]:
    """Returns the images by timm's name without a tag and by its tags, timm's own choice first."""
    found: dict[str, dict[str, Images]] = {}
    for row in _rows():
        bare, _, tag = row["name"].partition(".")
        mean, std = (tuple(map(float, row[x].split("/"))) for x in ("mean", "std"))
        found.setdefault(bare, {})[tag] = Images(
            train_size=int(row["train_size"]),
            eval_size=int(row["eval_size"]),
            crop=float(row["crop"]),
            crop_mode=row["crop_mode"],
            interpolation=row["interpolation"],
            mean=mean,
            std=std,
        )
    return found


@functools.cache
def _names() -> dict[str, str]:
    """Returns timm's name by all names: with a tag, without one, and those of files."""
    full = {name: row["name"] for row in _rows() for name in (row["name"], *row["also"].split())}
    return full | {bare: bare for bare in networks()}


def find(text: str) -> str | None:
    """Returns the name of timm that a text is, but for the sum at its end; None if it is none."""
    return _names().get(text) or _names().get(_SUM.sub("", text))


def ask(about: Mapping[str, Any], architecture: str | None = None) -> Told:
    """Tells which network of timm a file holds, and which images that expects.

    The user's word counts first, then what the file or the ``config.json`` beside it says, then the
    names of the file and its folder, if one of them is exactly one of timm's.

    Args:
        about: ``Tensors.about``.
        architecture: The user's word: timm's name of the network, with a tag or without.

    Raises:
        UsageError: If the user's word or the file's is none of timm's names of these networks, or
            ``config.json`` has a value that cannot be used.
    """
    says = about.get("architecture") or next(filter(_OTHER.fullmatch, about.get("names", ())), None)
    named = [name for name in map(find, about.get("names", ())) if name]
    of_file = find(str(says)) or find(str(says).partition(".")[0])
    if architecture is not None:
        name, by = _known(architecture), "as you say"
    elif says is not None:
        if of_file is None:
            raise UsageError(
                f"it is called {says!r}, which is none of timm's networks that are known to "
                "compute the same as a model here; if it is one of those, give timm's name of it "
                "as architecture (--architecture)"
            )
        name, by = of_file, "as the file or its config.json says"
    elif named:
        name, by = named[0], "as the name of the file or its folder says"
    else:
        return Told()
    bare, _, tag = name.partition(".")
    usual = next(x for start, x in _USUAL.items() if bare.startswith(start))
    others = [
        f"{key}={value!r}"
        for key, value in (about.get("model_args") or {}).items()
        if not (_HARMLESS.fullmatch(key) or (key in usual and value == usual[key]))
    ]
    if others and architecture is None:
        raise UsageError(f"it was made by timm with {', '.join(others)}, which no model here has")
    config: Mapping[str, Any] = {}
    if of_file and of_file.partition(".")[0] == bare and not (architecture and tag):
        config = about.get("pretrained_cfg") or {}
        if images := _read(config):
            return Told(bare, images, f"timm's {bare} and images as its config.json says")
    choices = networks()[bare]
    tags = [tag, config.get("tag"), *([of_file.partition(".")[2]] if of_file else [])]
    tags += [x.removeprefix(f"{bare}.") for x in named]
    by_name = architecture is None and says is None
    if found := next((x for x in tags if x in choices), None):
        return Told(bare, choices[found], f"timm's {bare}.{found}, {by}", by_name)
    if by_name and len(set(choices.values())) > 1:
        return Told(bare, None, f"timm's {bare}, {by}", by_name)
    first = next(iter(choices))
    by = f"timm's {bare}, {by}, with timm's own tag {first}"
    return Told(bare, choices[first], by, by_name)


def _known(architecture: str) -> str:
    bare, _, tag = architecture.partition(".")
    if name := find(architecture):
        return name
    if bare in networks():
        raise unknown_name(f"tag of timm's {bare}", tag, networks()[bare])
    listed_by = f"effnetv2_jax/weights/{_FILE.name}"
    raise unknown_name("architecture", bare, networks(), listed_by=listed_by)


def _read(config: Mapping[str, Any]) -> Images | None:
    """Reads the images off a ``pretrained_cfg``; None if it says nothing of them.

    As in timm, sizes and crops of tests come before those of training.
    """

    def value(default: Any, *keys: str) -> Any:
        return next((config[key] for key in keys if config.get(key) is not None), default)

    plain = Images()
    sizes, crops = ("test_input_size", "input_size"), ("test_crop_pct", "crop_pct")
    others = ("crop_mode", "interpolation", "mean", "std")
    if not any(config.get(x) for x in (*sizes, *crops, *others)):
        return None
    channels = (3, plain.eval_size, plain.eval_size)
    try:
        (_, train_size, _), (_, eval_size, _) = (
            _square(value(channels, *keys)) for keys in (sizes[1:], sizes)
        )
        images = Images(
            train_size=train_size,
            eval_size=eval_size,
            crop=float(value(plain.crop, *crops)),
            crop_mode=value(plain.crop_mode, "crop_mode"),
            interpolation=value(plain.interpolation, "interpolation"),
            mean=tuple(map(float, value(plain.mean, "mean"))),
            std=tuple(map(float, value(plain.std, "std"))),
        )
        # It is read as what a user may write.
        get_preprocessing(images.fields("")["preprocessing"])
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"the pretrained_cfg of its config.json cannot be used: {error}"
        ) from error
    return images


def _square(size: Any) -> tuple[int, int, int]:
    channels, height, width = map(int, size)
    if channels != 3 or height != width or height < 1:
        raise ValueError(f"images must be square and have 3 channels, got {size}")
    return channels, height, width
