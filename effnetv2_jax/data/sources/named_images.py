"""Images named on a command line: files, folders, and standard input."""

import collections
import dataclasses
import os
import re
from collections.abc import Callable, Iterator

import tensorflow as tf

from effnetv2_jax.data.decoding import IMAGE_ENDINGS, decode_box, switch, whole_box
from effnetv2_jax.data.sources import Example, Source, Split
from effnetv2_jax.data.sources.folder import images_below, log_skipped
from effnetv2_jax.runtime.errors import UsageError

STDIN = "-"

# The first bytes of images. Names of files may begin with BM, GIF, RIFF or P1, too. HEIC and JPEG
# XL are among them, so that decoding can say what they are.
_BEGINNING = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8[79]a|BM.{4}\0{4}|RIFF.{4}WEBP|II\*\0|MM\0\*|.{4}ftyp|"
    rb"P[1-6]\s+\d+\s+\d|\0\0\0\x0c|\xff[\x0a\x4f]",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class NamedImage:
    """An image, or something that turns out to be none when it is decoded.

    Attributes:
        name: The path of its file, or ``-`` for standard input.
        content: The content of the file. None if it is read when it is needed.
    """

    name: str
    content: bytes | None = None


def find_images(arguments: list[str], read_stdin: Callable[[], bytes]) -> list[NamedImage]:
    """Returns the images that arguments stand for, in their order.

    Args:
        arguments: Files, folders or ``-``. A folder stands for all images at any depth below it
            whose names end in ``IMAGE_ENDINGS``, in the order of their paths; the log counts its
            other files. ``-`` stands for standard input: one image, or else files and folders, one
            per line.
        read_stdin: A function that reads standard input. It is called if ``-`` is an argument.

    Raises:
        UsageError: For a path that does not exist, a folder without images, and no images at all.
    """
    images: list[NamedImage] = []
    for argument in arguments:
        images += _in_stdin(read_stdin()) if argument == STDIN else _at(argument)
    if not images:
        raise UsageError(
            "no images are named: give files, folders, or - for an image or names of files on "
            "standard input"
        )
    return images


def named_source(images: list[NamedImage]) -> Source:
    """Returns a data set of images in their order. All have label 0, and every split has all."""
    paths = tf.constant([b"" if x.content else os.fsencode(x.name) for x in images])
    contents = tf.constant([x.content or b"" for x in images])

    def get(index: tf.Tensor) -> Example:
        path, content = tf.gather(paths, index), tf.gather(contents, index)
        is_here = tf.cast(tf.strings.length(content) > 0, tf.int32)
        choices = (lambda path, content: tf.io.read_file(path), lambda path, content: content)
        image = switch(is_here, choices, path, content)
        return {"image": image, "label": tf.constant(0, tf.int64)}

    split = Split.of_examples(len(images), get, lambda index: printable(images[index].name))
    return Source(name="the images named", class_names=("unknown",), split=lambda name: split)


def small_copy(image: NamedImage, side: int) -> tf.Tensor:
    """Returns the whole image in its own shape, at most ``side`` px long: uint8 [height, width, 3].

    It is turned as its EXIF says, because people look at it.

    Raises:
        tf.errors.OpError: If the image cannot be read or decoded.
    """
    content = image.content or tf.io.read_file(os.fsencode(image.name))
    pixels = decode_box(tf.constant(content), whole_box, min_size=side, exif_orientation=True)
    longest = max(pixels.shape[:2])
    if longest <= side:
        return pixels
    shape = [max(1, round(length * side / longest)) for length in pixels.shape[:2]]
    return tf.cast(tf.image.resize(pixels, shape, antialias=True) + 0.5, tf.uint8)


def printable(name: str) -> str:
    """Returns a name on one line, with � for what a terminal cannot show."""
    return "".join(letter if letter.isprintable() else "�" for letter in name)


def _at(path: str) -> Iterator[NamedImage]:
    name = os.fsencode(path)  # a file's name need not be text
    if tf.io.gfile.isdir(name):
        skipped = collections.Counter[str]()
        paths = sorted(images_below(path.rstrip("/") or "/", skipped))
        log_skipped(path, skipped)
        if not paths:
            raise UsageError(
                f"the folder {path!r} has no images, whose names end in {', '.join(IMAGE_ENDINGS)}"
            )
        yield from map(NamedImage, paths)
    elif tf.io.gfile.exists(name):
        yield NamedImage(path)
    else:
        raise UsageError(f"{path!r} does not exist: give image files, folders of them, or -")


def _in_stdin(content: bytes) -> Iterator[NamedImage]:
    if _BEGINNING.match(content):
        yield NamedImage(STDIN, content)
        return
    if not content.strip() or b"\0" in content:
        what = "something else" if content.strip() else "nothing"
        raise UsageError(
            f"standard input must be an image ({', '.join(IMAGE_ENDINGS)}) or names of files, one "
            f"a line, but is {what}"
        )
    for line in content.splitlines():
        if line.strip():
            yield from _at(os.fsdecode(line))
