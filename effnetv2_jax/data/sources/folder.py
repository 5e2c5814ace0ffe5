"""Your own images: a folder for every class, in ``train/`` and optionally val/ and test/."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from effnetv2_jax.data.sources import Example, Source, Split, digest
from effnetv2_jax.runtime.errors import UsageError, unknown_name

# The largest number of files whose sizes tell a data set from another with the same names.
_LOOKED_AT = 64

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")

# The paths of each class's files, both sorted.
_Images = dict[str, list[str]]


def folder_source(path: str, *, holdout: float = 0.1) -> Source:
    """Opens a folder of images as a data set. Files are listed now and read when needed.

    The layout is ``path/train/CLASS/…/IMAGE``, and optionally the same in ``path/val`` and
    ``path/test``. Labels number the class folders in the order of their names. Images are the files
    at any depth below a class folder whose names end in ``ENDINGS``, in any case, and do not begin
    with a dot. The splits are ``train``, ``val``, ``test`` if its folder exists, and ``trainval``,
    which is all of ``train/``. Their examples are in the order of the paths. An example has
    ``image``, the content of the file (string []), and ``label`` (int64 []).

    Without ``val/``, a share of every class in ``train/`` is held out as ``val``. The choice
    depends only on the names in that class.

    Args:
        path: A local folder, or a remote one such as ``gs://bucket/images``.
        holdout: The share of each class that is held out, between 0 and 1. It is rounded to at
            least one image, and one stays in ``train``. A class of one image is not in ``val``.

    Raises:
        UsageError: If holdout is not between 0 and 1, or if the folders are not laid out as above,
            cannot be read, lack images, or differ in their classes.
    """
    if not 0 < holdout < 1:
        raise UsageError(
            f"holdout {holdout} cannot be used: it is the share of train/ to hold out, above 0 and "
            "below 1"
        )
    root = os.path.expanduser(path)
    if not tf.io.gfile.isdir(root):
        raise UsageError(
            f"the folder {path!r} does not exist or cannot be read: give the one that holds train/"
        )
    root = root.rstrip("/")
    if not tf.io.gfile.isdir(f"{root}/train"):
        raise UsageError(
            f"there is no folder train/ in {path!r}: put the images in {root}/train/CLASS/, one "
            "folder for every class"
        )
    train = _list_images(f"{root}/train")
    classes = tuple(train)
    images = {"train": train, "trainval": train}
    for name in ("val", "test"):
        if tf.io.gfile.isdir(f"{root}/{name}"):
            images[name] = _list_images(f"{root}/{name}", classes)
    if "val" not in images:
        images["train"], images["val"] = _hold_out(train, f"{root}/train/", holdout)

    def split(name: str) -> Split:
        if name not in images:
            raise unknown_name(f"split of folder:{path}", name, images)
        if not any(images[name].values()):  # only a held-out share can be empty
            raise UsageError(
                f"no image of {root}/train can be held out, as each class has just one: add images "
                "or make a folder val/"
            )
        return _split(images[name], root)

    return Source(name=f"folder:{path}", class_names=classes, split=split)


def images_below(folder: str) -> Iterator[str]:
    """Yields the paths of the images at any depth below a folder, as ``folder_source`` sees them.

    Raises:
        UsageError: If a folder cannot be read.
    """
    for name, is_folder in _entries(folder):
        if is_folder:
            yield from images_below(f"{folder}/{name}")
        elif _is_image(name):
            yield f"{folder}/{name}"


def _list_images(folder: str, expected: tuple[str, ...] | None = None) -> _Images:
    """Finds the images in the class folders of a folder, which must be those that are expected."""
    entries = list(_entries(folder))
    classes = sorted(name for name, is_folder in entries if is_folder)
    if not classes:
        what = "images but " if any(_is_image(name) for name, _ in entries) else ""
        raise UsageError(
            f"{folder} has {what}no class folders: put each image in {folder}/CLASS/, the folder "
            "of its class"
        )
    if expected is not None and set(classes) != set(expected):
        lacks, adds = set(expected) - set(classes), set(classes) - set(expected)
        differences = (("lacks", lacks), ("adds", adds))
        said = " and ".join(f"{verb} {_few(names)}" for verb, names in differences if names)
        raise UsageError(f"{folder} must have the same class folders as train/, but it {said}")
    # Threads, for folders behind a network.
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda name: sorted(images_below(f"{folder}/{name}")), classes)
        files = dict(zip(classes, found, strict=True))
    empty = [name for name in classes if not files[name]]
    if empty:
        remedy = "put images in" if expected else "delete the folder or put images in"
        raise UsageError(
            f"{folder} has no image for the class {_few(empty)}: {remedy}, with names that end in "
            f"{', '.join(ENDINGS)}"
        )
    return files


def _entries(folder: str) -> Iterator[tuple[str, bool]]:
    """Yields (name, is it a folder) of everything in a folder that is not hidden."""
    try:
        if "://" in folder:
            found = _remote(folder)
        else:
            found = ((entry.name, entry.is_dir()) for entry in os.scandir(folder))
        for name, is_folder in found:
            if name and not name.startswith("."):
                yield name, is_folder
    except (OSError, tf.errors.OpError) as error:
        raise UsageError(f"the folder {folder!r} cannot be read: {error}") from error


def _remote(folder: str) -> Iterator[tuple[str, bool]]:
    for name in tf.io.gfile.listdir(folder):
        # Each isdir is a request. It is not needed for names with a slash, with which buckets mark
        # folders, nor for images, which are files.
        is_file = _is_image(name) or not (
            name.endswith("/") or tf.io.gfile.isdir(f"{folder}/{name}")
        )
        yield name.rstrip("/"), not is_file


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _few(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more


def _hold_out(images: _Images, folder: str, holdout: float) -> tuple[_Images, _Images]:
    """Splits images into those that stay and those held out."""

    def key(file: str) -> bytes:
        # The 0 is there because it always was: a resumed run must hold out the same images.
        text = f"0/{file.removeprefix(folder)}"
        return hashlib.blake2b(os.fsencode(text), digest_size=16).digest()

    stay, held = {}, {}
    for name, files in images.items():
        count = min(max(1, round(holdout * len(files))), len(files) - 1)
        drawn = set(sorted(files, key=key)[:count])
        held[name] = [file for file in files if file in drawn]
        stay[name] = [file for file in files if file not in drawn]
    return stay, held


def _split(images: _Images, root: str) -> Split:
    # Bytes, because a file's name need not be text.
    paths = [os.fsencode(file) for files in images.values() for file in files]
    counts = [len(files) for files in images.values()]
    path_of = tf.constant(paths)
    label_of = tf.constant(np.repeat(np.arange(len(counts), dtype=np.int64), counts))

    def get(index: tf.Tensor) -> Example:
        image = tf.io.read_file(tf.gather(path_of, index))
        return {"image": image, "label": tf.gather(label_of, index)}

    def fingerprint() -> tuple[str, str]:
        names = digest(path.removeprefix(os.fsencode(root)) for path in paths)
        # A look at every file would be a million requests to a bucket.
        looked_at = paths[:: -(-len(paths) // _LOOKED_AT)]
        with ThreadPoolExecutor(16) as pool:
            return names, digest(b"%d" % size for size in pool.map(_size, looked_at))

    return Split.of_examples(
        len(paths), get, lambda i: paths[i].decode(errors="replace"), fingerprint
    )


def _size(path: bytes) -> int:
    try:
        return tf.io.gfile.stat(path).length
    except tf.errors.OpError:
        return -1  # the file has gone meanwhile
