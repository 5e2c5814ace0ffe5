"""The tar files of ImageNet (ILSVRC 2012) as they are downloaded: what is in them, and where.

Nothing is unpacked. In a tar file, and in one inside another, the bytes of an image lie in a row,
so their place and number are all that it takes to read it.
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
from effnetv2_jax.runtime.errors import UsageError


class TarImage(NamedTuple):
    """One image of a tar file.

    Attributes:
        name: as TFDS has it, such as ``n02123045_11.JPEG``; in no folder.
        label: the WordNet id of its class.
        offset: of its first byte, in the tar file.
        size: in bytes.
    """

    name: str
    label: str
    offset: int
    size: int


def train_images(path: str) -> Iterator[TarImage]:
    """Of ILSVRC2012_img_train.tar: a tar file for every class, named by its WordNet id.

    Raises:
        UsageError: where it cannot be read, is cut off, or holds anything else.
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
    """Of ILSVRC2012_img_val.tar; their classes are in a list of TFDS's, in the order of the names.

    Raises:
        UsageError: as ``train_images``.
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
        file: its name.
        num_images: in ILSVRC 2012.
        images: of (path) → those that are in it, in their order there.
    """

    file: str
    num_images: int
    images: Callable[[str], Iterator[TarImage]]


ARCHIVES = {
    "train": Archive("ILSVRC2012_img_train.tar", 1_281_167, train_images),
    "validation": Archive("ILSVRC2012_img_val.tar", 50_000, validation_images),
}
"""By TFDS's name of the split."""


def read_image(path: str, image: TarImage) -> bytes:
    """The file of one image; may be called by several threads.

    Raises:
        UsageError: where it cannot be read.
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
        raise UsageError(f"{path} cannot be read: {error}") from error


def _members(file: IO[bytes], name: str, limit: float = math.inf) -> Iterator[tarfile.TarInfo]:
    """The files in a tar file without compression that begins where the file stands.

    Args:
        file: at its beginning.
        name: for messages.
        limit: the byte before which it has to end.

    Raises:
        UsageError: where something is no file, or the end is missing.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isreg() or member.issparse():
                    raise _unexpected(name, member, "plain files alone")
                yield member
            file.seek(tar.offset)
            # tarfile takes a header that is broken or missing for the end; the mark of it is zeros.
            mark = file.read(tarfile.BLOCKSIZE)
            if mark != bytes(tarfile.BLOCKSIZE) or tar.offset >= limit:
                raise tarfile.ReadError(f"no file begins and nothing ends at byte {tar.offset}")
    except tarfile.TarError as error:
        raise UsageError(
            f"{name} is no tar file, or not all of one ({error}): download it again"
        ) from error


def _unexpected(name: str, member: tarfile.TarInfo, expected: str) -> UsageError:
    return UsageError(f"{name} holds {member.name!r}, where ImageNet's has {expected}")
