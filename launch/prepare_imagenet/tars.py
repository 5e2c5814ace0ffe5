"""The tar files of ImageNet (ILSVRC 2012) as they are downloaded, and the images in them.

Nothing is unpacked. The bytes of an image are contiguous in a tar file, and also in one inside
another, so an image can be read from its offset and its size.
"""

import contextlib
import dataclasses
import math
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds

from effnetv2_jax.data.sources.imagenet_classes import imagenet_ids
from effnetv2_jax.data.sources.tfrecords import open_binary
from effnetv2_jax.runtime.errors import UsageError, reason


class TarImage(NamedTuple):
    """One image of a tar file.

    Attributes:
        name: The name in TFDS, such as ``n02123045_11.JPEG``, without a folder.
        label: The WordNet id of its class.
        offset: The place of its first byte in the tar file.
        size: The size in bytes.
    """

    name: str
    label: str
    offset: int
    size: int


def train_images(path: str) -> Iterator[TarImage]:
    """Yields the images of ILSVRC2012_img_train.tar.

    It has a tar file for every class, named by the class's WordNet id.

    Raises:
        UsageError: If the tar file cannot be read, is cut off, or has anything else in it.
    """
    classes = frozenset(imagenet_ids())
    with _reading(path) as file:
        for archive in _members(file, path):
            label = archive.name.removesuffix(".tar")
            if archive.name == label or label not in classes:
                raise _unexpected(path, archive, "names such as n01440764.tar")
            inside = f"{archive.name} in {path}"
            file.seek(archive.offset_data)
            for member in _members(file, inside, archive.offset_data + archive.size):
                if not re.fullmatch(rf"{label}_[0-9]+\.JPEG", member.name):
                    raise _unexpected(inside, member, f"names such as {label}_1.JPEG")
                yield TarImage(member.name, label, member.offset_data, member.size)


def validation_images(path: str) -> Iterator[TarImage]:
    """Yields the images of ILSVRC2012_img_val.tar.

    TFDS has a list of their classes in the order of the names.

    Raises:
        UsageError: For the same reasons as ``train_images``.
    """
    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    names = {f"ILSVRC2012_val_{i:08d}.JPEG": label for i, label in enumerate(labels, start=1)}
    with _reading(path) as file:
        for member in _members(file, path):
            if member.name not in names:
                raise _unexpected(path, member, f"the names {min(names)} to {max(names)}")
            yield TarImage(member.name, names[member.name], member.offset_data, member.size)


@dataclasses.dataclass(frozen=True)
class Archive:
    """One of the two tar files.

    Attributes:
        file: The name of the file.
        num_images: The number of images in ILSVRC 2012.
        images: A function of the path that yields the images of the file, in their order.
    """

    file: str
    num_images: int
    images: Callable[[str], Iterator[TarImage]]


ARCHIVES = {
    "train": Archive("ILSVRC2012_img_train.tar", 1_281_167, train_images),
    "validation": Archive("ILSVRC2012_img_val.tar", 50_000, validation_images),
}
"""The tar file of each split, by TFDS's name of the split."""


def read_image(path: str, image: TarImage) -> bytes:
    """Reads one image. Several threads may call it.

    Raises:
        UsageError: If the tar file cannot be read.
    """
    with _reading(path) as file:
        file.seek(image.offset)
        content = file.read(image.size)
    if len(content) != image.size:
        raise UsageError(f"{path} has become shorter: download it again")
    return content


@contextlib.contextmanager
def _reading(path: str) -> Iterator[IO[bytes]]:
    try:
        with open_binary(path) as file:
            yield file
    except (OSError, tf.errors.OpError) as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from error


def _members(file: IO[bytes], name: str, limit: float = math.inf) -> Iterator[tarfile.TarInfo]:
    """Yields the files in a tar file without compression.

    Args:
        file: An open file, at the beginning of the tar file.
        name: The name of the tar file, for messages.
        limit: The byte before which the tar file has to end.

    Raises:
        UsageError: If something in it is not a file, or if its end is missing.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isreg() or member.issparse():
                    raise _unexpected(name, member, "only plain files")
                yield member
            file.seek(tar.offset)
            # tarfile takes a broken or missing header for the end. The mark of a real end is zeros.
            mark = file.read(tarfile.BLOCKSIZE)
            if mark != bytes(tarfile.BLOCKSIZE) or tar.offset >= limit:
                raise tarfile.ReadError(f"no file begins and nothing ends at byte {tar.offset}")
    except tarfile.TarError as error:
        raise UsageError(
            f"{name} is not a tar file, or cut off ({error}): download it again"
        ) from error


def _unexpected(name: str, member: tarfile.TarInfo, expected: str) -> UsageError:
    return UsageError(f"{name} has {member.name!r}, but ImageNet's has {expected}")
