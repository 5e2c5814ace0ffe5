"""Writes what timm knows of our networks: its table of names, and images as it prepares them.

No test runs it. From the repository's root, in an environment with torch, timm and scikit-image:

    python -m tests.golden.make_timm_networks

Made with timm 1.0.31, torch 2.13.0, torchvision 0.28.0, Pillow 13.0.0 and scikit-image 0.26.0.

``effnetv2_jax/weights/timm_networks.csv`` has a row for every name with a tag: the sides in px of
training and evaluation images, what evaluation does to an image, the normalisation of values
0 … 1, an ``x`` where timm takes the tag for the name without one, and other names of the same
weights, which are those of files and timm's own former ones.

``timm_images.npz`` has every way to prepare an image in that table, and a few more:

    cases       text, the fields of a row without its names
    CASE/PHOTO  float16 [8, 8, 3], pixels of the normalised image, see ``sample``
"""

import csv
import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.golden.make_logits import import_timm

FOLDER = pathlib.Path(__file__).parent
TABLE = FOLDER.parent.parent / "effnetv2_jax" / "weights" / "timm_networks.csv"
IMAGES = FOLDER / "timm_images.npz"
COLUMNS = (
    "name", "train_size", "eval_size", "crop", "crop_mode", "interpolation", "mean", "std",
    "default", "also",
)  # fmt: skip
PREPARES = COLUMNS[2:8]
NETWORKS = re.compile(
    r"(tf_)?efficientnet_(b\d|l2|lite\d)|(tf_)?efficientnetv2_(b\d|s|m|l|xl|rw_t)"
    r"|vit_(tiny|small|base)_patch16_\d+|vit_base_patch32_\d+|vit_large_patch16_\d+"
    r"|deit_(tiny|small|base)_patch16_\d+"
)
# No tag of ours has these, but a config.json may.
MORE = (
    {"eval_size": 224, "crop": 0.9, "crop_mode": "border", "interpolation": "bilinear"},
    {"eval_size": 161, "crop": 1.0, "crop_mode": "border", "interpolation": "bicubic"},
    {"eval_size": 130, "crop": 0.8, "crop_mode": "squash", "interpolation": "bilinear"},
)


def photographs() -> dict[str, np.ndarray]:
    """Returns photographs, uint8 [height, width, 3], one wide and one high."""
    import skimage.data

    return {"cat": skimage.data.chelsea(), "portrait": skimage.data.astronaut()[:, 56:409]}


def sample(image: np.ndarray) -> np.ndarray:
    """Returns 8 × 8 pixels that are spread over an image, also to its corners."""
    steps = np.linspace(0, image.shape[0] - 1, 8).round().astype(int)
    return image[steps][:, steps]


def rows() -> Iterator[dict[str, Any]]:
    """Yields the rows of the table."""
    from timm.models import _registry

    former: dict[str, list[str]] = {}
    for module in _registry._module_to_deprecated_models.values():
        for old, new in module.items():
            former.setdefault(new, []).append(old)
    for name, default in sorted(_registry._model_default_cfgs.items()):
        if not NETWORKS.fullmatch(name):
            continue
        for number, tag in enumerate(default.tags):
            config = default.cfgs[tag]
            full = f"{name}.{tag}"
            yield {
                "name": full,
                "train_size": config.input_size[-1],
                "eval_size": (config.test_input_size or config.input_size)[-1],
                "crop": config.test_crop_pct or config.crop_pct,
                "crop_mode": config.crop_mode,
                "interpolation": config.interpolation,
                "mean": "/".join(map(str, config.mean)),
                "std": "/".join(map(str, config.std)),
                "default": "x" if number == 0 else "",
                "also": " ".join(dict.fromkeys([*files(name, config), *former.get(full, [])])),
            }


def files(name: str, config: Any) -> list[str]:
    """Returns the name of the weights' file, without its sum where that is no network's name."""
    stem, _, ending = (config.url or "").rpartition("/")[2].rpartition(".")
    if ending != "pth":
        return []
    short = re.sub(r"-[0-9a-f]{8}$", "", stem)
    return [stem if short == name else short]


def prepared(row: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each photograph as timm evaluates it, normalised, float32 [size, size, 3]."""
    from PIL import Image
    from timm.data import create_transform

    mean, std = (tuple(map(float, row[x].split("/"))) for x in ("mean", "std"))
    transform = create_transform(
        (3, row["eval_size"], row["eval_size"]),
        crop_pct=row["crop"],
        crop_mode=row["crop_mode"],
        interpolation=row["interpolation"],
        mean=mean,
        std=std,
    )
    for photo, pixels in photographs().items():
        yield photo, transform(Image.fromarray(pixels)).numpy().transpose(1, 2, 0)


def main() -> None:
    import_timm()
    from timm.models import PretrainedCfg

    table = list(rows())
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    plain = dataclasses.asdict(PretrainedCfg())
    normal = {name: "/".join(map(str, plain[name])) for name in ("mean", "std")}
    ways = [*table, *(normal | x for x in MORE)]
    cases = {",".join(str(row[x]) for x in PREPARES): row for row in ways}
    arrays = {"cases": np.array(list(cases))}
    for case, row in cases.items():
        for photo, image in prepared(row):
            arrays[f"{case}/{photo}"] = sample(image).astype(np.float16)
    np.savez_compressed(IMAGES, **arrays)
    print(f"{len(table)} names, {len(cases)} ways to prepare an image")


if __name__ == "__main__":
    main()
