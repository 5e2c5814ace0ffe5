"""TFDS's files of ImageNet, out of its tar files; ``prepare_imagenet`` is the program."""

import concurrent.futures
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.utils.shard_utils import ShardConfig
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as official

from effnetv2_jax.runtime.bars import spinner, track
from effnetv2_jax.runtime.errors import UsageError
from launch.prepare_imagenet.shards import ShardedSplit
from launch.prepare_imagenet.tars import ARCHIVES, Archive, TarImage, read_image

SOURCES = "prepared_from.json"
"""Beside the files: what the tar files were that they are made from."""

# As TFDS has it since its version 3.0.0 of the data set, of the training split alone.
CONVERTED = dict.fromkeys(official.CMYK_IMAGES, tfds.core.utils.jpeg_cmyk_to_rgb) | dict.fromkeys(
    official.PNG_IMAGES, tfds.core.utils.png_to_jpeg
)
"""Images that are no RGB JPEGs → what makes them such."""


def prepare(
    tar_dir: str,
    data_dir: str,
    *,
    threads: int = 16,
    partial: bool = False,
    num_shards: int | None = None,
) -> None:
    """Writes the files that are not there, and last of all what tells TFDS that all are.

    Args:
        tar_dir: folder or bucket of the tar files.
        data_dir: folder or bucket of TFDS's data sets.
        threads: files written at a time, each with one image in memory.
        partial: whether tar files may have fewer images than ILSVRC 2012.
        num_shards: files of each split; None for TFDS's choice, 1,024 and 64.

    Raises:
        UsageError: for a tar file that cannot be used, and for files that were made from others.
        OSError, tf.errors.OpError: where data_dir cannot be written.
    """
    builder = tfds.builder("imagenet2012", data_dir=data_dir)
    folder = builder.data_path
    if (folder / "dataset_info.json").exists():
        print(f"{folder} is prepared already")
        return
    images = {
        name: images_of(archive, os.path.join(tar_dir, archive.file), partial)
        for name, archive in ARCHIVES.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    check_sources(folder, images)
    splits = [
        ShardedSplit(
            builder,
            name,
            [image.name for image in images[name]],
            example_of(os.path.join(tar_dir, archive.file), images[name], name),
            num_shards or number_of_shards(images[name]),
        )
        for name, archive in ARCHIVES.items()
    ]
    for split in splits:
        write(split, threads)
    builder.info.set_splits(tfds.core.SplitDict([split.info() for split in splits]))
    builder.info.write_to_directory(folder)
    print(f"{folder} is prepared: use it with --config.data.dir={data_dir}")


def images_of(archive: Archive, path: str, partial: bool = False) -> list[TarImage]:
    """Which images a tar file holds.

    Raises:
        UsageError: where it cannot be used, or they are not all there and need to be.
    """
    images: dict[str, TarImage] = {}
    with spinner(f"reading {archive.file}") as say:
        for image in archive.images(path):
            if image.name in images:
                raise UsageError(f"{path} holds {image.name} twice: download it again")
            images[image.name] = image
            if len(images) % 1000 == 0:
                say(f"{len(images):,} of {archive.num_images:,} images")
    if not images or (len(images) != archive.num_images and not partial):
        raise UsageError(
            f"{path} holds {len(images):,} images, where ImageNet's has {archive.num_images:,}: "
            "download it again, or take what is there with --partial"
        )
    return list(images.values())


def check_sources(folder: epath.Path, images: Mapping[str, Sequence[TarImage]]) -> None:
    """Writes down what tar files the data set is made from, or makes sure that they are the same.

    Raises:
        UsageError: where they are not.
    """
    sources = {name: {"images": len(rows), "sha256": digest(rows)} for name, rows in images.items()}
    text = json.dumps(sources, indent=2)
    record = folder / SOURCES
    if not record.exists():
        record.write_text(text)
    elif record.read_text() != text:
        raise UsageError(f"{folder} was begun with other tar files: remove it, or bring those back")


def digest(images: Sequence[TarImage]) -> str:
    """Tells tar files apart by the names, places and sizes of what they hold."""
    sha256 = hashlib.sha256()
    for image in images:
        sha256.update(repr(tuple(image)).encode())
    return sha256.hexdigest()


def number_of_shards(images: Sequence[TarImage]) -> int:
    """TFDS's choice, which goes by the size of all."""
    return ShardConfig.calculate_number_shards(sum(image.size for image in images), len(images))


def example_of(
    path: str, images: Sequence[TarImage], split: str
) -> Callable[[int], dict[str, Any]]:
    """Of (index) → the example that TFDS's builder makes of that image."""

    def example(index: int) -> dict[str, Any]:
        image = images[index]
        content = read_image(path, image)
        if split == "train" and image.name in CONVERTED:
            content = CONVERTED[image.name](content)
        return {"file_name": image.name, "image": io.BytesIO(content), "label": image.label}

    return example


def write(split: ShardedSplit, threads: int) -> None:
    """Writes the files of a split that are missing, several at a time."""
    missing = split.missing()
    print(f"{split.name}: {len(missing):,} of {len(split.paths):,} files to write", flush=True)
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        for _ in track(pool.map(split.write, missing), f"writing {split.name}", len(missing)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
