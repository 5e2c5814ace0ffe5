"""Writing TFDS's files of ImageNet from its tar files."""

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
"""The name of the file, beside the others, that describes the tar files they are made from."""

# The same images as in TFDS since version 3.0.0 of the data set. Only the training split has them.
CONVERTED = dict.fromkeys(official.CMYK_IMAGES, tfds.core.utils.jpeg_cmyk_to_rgb) | dict.fromkeys(
    official.PNG_IMAGES, tfds.core.utils.png_to_jpeg
)
"""The images that are not RGB JPEGs, and the functions that convert them."""


def prepare(
    tar_dir: str,
    data_dir: str,
    *,
    threads: int = 16,
    partial: bool = False,
    num_shards: int | None = None,
) -> None:
    """Writes the files that do not exist yet, and at the end the description that TFDS needs.

    Args:
        tar_dir: The folder or bucket with the tar files.
        data_dir: The folder or bucket for the data sets of TFDS.
        threads: The number of files written at the same time, each with one image in memory.
        partial: Accepts tar files with fewer images than ILSVRC 2012 if set.
        num_shards: The number of files of each split. None means TFDS's choice, 1,024 and 64.

    Raises:
        UsageError: For a tar file that cannot be used, and if files were made from other tar files.
        OSError, tf.errors.OpError: If data_dir cannot be written.
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
    """Lists the images of a tar file.

    Args:
        archive: The description of the tar file.
        path: The path of the tar file.
        partial: Accepts fewer images than ILSVRC 2012 has if set.

    Raises:
        UsageError: If the tar file cannot be used or lacks images.
    """
    images: dict[str, TarImage] = {}
    with spinner(f"reading {archive.file}") as say:
        for image in archive.images(path):
            if image.name in images:
                raise UsageError(f"{path} has {image.name} twice: download it again")
            images[image.name] = image
            if len(images) % 1000 == 0:
                say(f"{len(images):,} of {archive.num_images:,} images")
    if not images or (len(images) != archive.num_images and not partial):
        raise UsageError(
            f"{path} has {len(images):,} images, but ImageNet's has {archive.num_images:,}: "
            "download it again, or accept the images it has with --partial"
        )
    return list(images.values())


def check_sources(folder: epath.Path, images: Mapping[str, Sequence[TarImage]]) -> None:
    """Records which tar files the data set is made from, or checks that they are the same.

    Raises:
        UsageError: If the files of the data set were made from other tar files.
    """
    sources = {name: {"images": len(rows), "sha256": digest(rows)} for name, rows in images.items()}
    text = json.dumps(sources, indent=2)
    record = folder / SOURCES
    if not record.exists():
        record.write_text(text)
    elif record.read_text() != text:
        raise UsageError(f"{folder} was begun with other tar files: remove it, or use those again")


def digest(images: Sequence[TarImage]) -> str:
    """Returns a digest of the names, places and sizes of images, which identifies a tar file."""
    sha256 = hashlib.sha256()
    for image in images:
        sha256.update(repr(tuple(image)).encode())
    return sha256.hexdigest()


def number_of_shards(images: Sequence[TarImage]) -> int:
    """Returns TFDS's choice, which depends on the size of all images."""
    return ShardConfig.calculate_number_shards(sum(image.size for image in images), len(images))


def example_of(
    path: str, images: Sequence[TarImage], split: str
) -> Callable[[int], dict[str, Any]]:
    """Returns a function of an image's index that makes the same example as TFDS's builder."""

    def example(index: int) -> dict[str, Any]:
        image = images[index]
        content = read_image(path, image)
        if split == "train" and image.name in CONVERTED:
            content = CONVERTED[image.name](content)
        return {"file_name": image.name, "image": io.BytesIO(content), "label": image.label}

    return example


def write(split: ShardedSplit, threads: int) -> None:
    """Writes the missing files of a split, several at the same time."""
    missing = split.missing()
    print(f"{split.name}: {len(missing):,} of {len(split.paths):,} files to write", flush=True)
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        for _ in track(pool.map(split.write, missing), f"writing {split.name}", len(missing)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
