"""Your own images: a folder for every class, in ``train/`` or on their own."""

import collections
import functools
import hashlib
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from absl import logging

from effnetv2_jax.data.decoding import IMAGE_ENDINGS
from effnetv2_jax.data.sources import Example, Source, Split, digest
from effnetv2_jax.runtime.errors import UsageError, reason, unknown_name

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""The names, in lower case, of the folder of each split."""

# What operating systems and servers leave in folders, in lower case. Hidden ones are not listed.
_LITTER = ("__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found")

# The largest number of files whose sizes tell a data set from another with the same names.
_LOOKED_AT = 64

# The paths of each class's files, both sorted.
_Images = dict[str, list[str]]


def folder_source(
    path: str, *, holdout: float = 0.1, class_names: Sequence[str] | None = None
) -> Source:
    """Opens a folder of images as a data set. Files are listed now and read when needed.

    The layout is ``path/train/CLASS/…/IMAGE``, and optionally the same in ``path/val`` and
    ``path/test`` (``SPLIT_FOLDERS`` has the other names that these may have). If there is none of
    these folders, it is ``path/CLASS/…/IMAGE``, and all images are training images. Labels number
    the class folders in the order of their names, of which composed and decomposed Unicode is the
    same. Images are the files at any depth below a class folder whose names end in
    ``IMAGE_ENDINGS``, in any case, and do not begin with a dot. The log counts other files. The
    splits are ``train``, ``val``, ``test`` if its folder exists, and ``trainval``, which is all of
    ``train/``. Their examples are in the order of the paths. An example has ``image``, the content
    of the file (string []), and ``label`` (int64 []).

    ``val/`` and ``test/`` are listed when their splits are opened. They may lack classes.

    Without ``val/``, a share of every class in ``train/`` is held out as ``val``. The choice
    depends only on the names in that class. If there is no ``train/`` either, it depends only on
    the name of each file, so that images can be added without moving others between the splits.

    Args:
        path: A local folder, or a remote one such as ``gs://bucket/images``.
        holdout: The share of each class that is held out, between 0 and 1. It is at least one
            image, and one stays in ``train``. A class of one image is not in ``val``.
        class_names: The classes in the order of their labels, if they are known already.
            ``train/`` is then listed only for the splits that need it, and need not exist.
            None means the class folders of ``train/``.

    Raises:
        UsageError: If holdout is not between 0 and 1, or if the folders are not laid out as above,
            cannot be read, lack images, have a single class, or classes of their own. ``split``
            raises it as well.
    """
    if not 0 < holdout < 1:
        raise UsageError(
            f"holdout {holdout} cannot be used: it is the share of train/ to hold out, above 0 and "
            "below 1"
        )
    root = os.path.expanduser(path)
    if not tf.io.gfile.isdir(os.fsencode(root)):  # a folder's name need not be text
        raise UsageError(
            f"the folder {path!r} does not exist or cannot be read: give the one that holds train/"
        )
    root = root.rstrip("/")
    folders = _find_splits(root)
    is_flat = folders.get("train") == root

    @functools.cache
    def images(name: str) -> _Images:
        if name not in folders:
            beside = f", only {_few(folders.values())}" if folders else ""
            raise UsageError(
                f"there is no folder {name}/ in {path!r}{beside}: put the images in "
                f"{root}/{name}/CLASS/, one folder for every class"
            )
        found = _list_images(folders[name], class_names)
        if is_flat:
            _refuse_inner_splits(root, found)
        return found

    if class_names is None:
        class_names = tuple(images("train"))
        if len(class_names) < 2:
            also = f"there is no folder train/ in {path!r}, and " if is_flat else ""
            raise UsageError(
                f"{also}{folders['train']} has only one class folder, {class_names[0]!r}: put the "
                f"images in {root}/train/CLASS/, one folder for every class"
            )
        if is_flat:
            logging.info(
                "%s has no train/: its %d folders are the classes, and about %g %% of their images "
                "are held out as val",
                *(root, len(class_names), 100 * holdout),
            )

    @functools.cache
    def divided() -> tuple[_Images, _Images]:
        return _hold_out(images("train"), f"{folders['train']}/", holdout, is_flat)

    def split(name: str) -> Split:
        names = {*folders, "train", "val", "trainval"}
        if name not in names:
            raise unknown_name(f"split of folder:{path}", name, names)
        if name == "trainval":
            return _split(images("train"), root)
        if name == "test" or "val" in folders:
            return _split(images(name), root)
        stay, held = divided()
        if name == "val" and not any(held.values()):
            raise UsageError(
                f"no image of {folders['train']} can be held out, as each class has just one: add "
                "images or make a folder val/"
            )
        return _split(held if name == "val" else stay, root)

    return Source(name=f"folder:{path}", class_names=tuple(class_names), split=split)


def images_below(folder: str, skipped: collections.Counter[str]) -> Iterator[str]:
    """Yields the paths of the images at any depth below a folder, as ``folder_source`` sees them.

    Args:
        folder: The folder.
        skipped: The number of other files by their endings, to which those found are added.

    Raises:
        UsageError: If a folder cannot be read, or links to one that holds it.
    """
    for name, is_folder in _entries(folder):
        if is_folder:
            yield from images_below(f"{folder}/{name}", skipped)
        elif _is_image(name):
            yield f"{folder}/{name}"
        else:
            skipped[os.path.splitext(name)[1].lower() or "no ending"] += 1


def log_skipped(folder: str, skipped: collections.Counter[str]) -> None:
    """Says in one line of the log which files of a folder are not taken for images, if any."""
    if skipped:
        logging.warning(
            "%s has %d files that are left out: %s; convert those that are images, such as HEIC, "
            "to JPEG or PNG",
            *(folder, skipped.total(), _counts(skipped)),
        )


def _find_splits(root: str) -> dict[str, str]:
    """Returns the folder of each split that there is; the root is ``train`` if there is none."""
    names = sorted(name for name, is_folder in _entries(root) if is_folder)
    folders = {}
    for split, allowed in SPLIT_FOLDERS.items():
        found = [name for name in names if name.lower() in allowed]
        if len(found) > 1:
            raise UsageError(f"{root} has {_few(found)} for the split {split}: keep one of them")
        if found:
            folders[split] = f"{root}/{found[0]}"
    if not folders:
        return {"train": root}
    others = [name for name in names if f"{root}/{name}" not in folders.values()]
    if others:
        logging.warning("%s is no split of %s and is not read", _few(others), root)
    return folders


def _refuse_inner_splits(root: str, images: _Images) -> None:
    """Raises UsageError if the folders of a root without ``train/`` hold splits, not images."""
    names = {name for allowed in SPLIT_FOLDERS.values() for name in allowed}
    for files in images.values():
        for file in files:
            folder, inner, *_ = file.removeprefix(f"{root}/").split("/")
            if inner.lower() in names:
                raise UsageError(
                    f"there is no folder train/ in {root!r}, but {root}/{folder}/ has {inner}/: "
                    "give a folder that holds train/CLASS/, or one that holds only class folders"
                )


def _list_images(folder: str, expected: Sequence[str] | None) -> _Images:
    """Finds the images in the class folders of a folder.

    Args:
        folder: The folder that holds the class folders.
        expected: The classes that it may have. None takes its class folders, which must then have
            images.
    """
    entries = list(_entries(folder))
    found = sorted(name for name, is_folder in entries if is_folder)
    outside = sum(_is_image(name) and not is_folder for name, is_folder in entries)
    if not found:
        what = "images but " if outside else ""
        raise UsageError(
            f"{folder} has {what}no class folders: put each image in {folder}/CLASS/, the folder "
            "of its class"
        )
    if outside:
        logging.warning(
            "%s has %d images outside of class folders, which are left out", folder, outside
        )
    below = [f"{folder}/{name}" for name in found]
    # Threads, for folders behind a network.
    with ThreadPoolExecutor(16) as pool:
        counts = [collections.Counter[str]() for _ in found]
        listed = pool.map(lambda *args: list(images_below(*args)), below, counts)
        files: _Images = {}
        for name, paths in zip(found, listed, strict=True):
            files.setdefault(_composed(name), []).extend(paths)
    log_skipped(folder, sum(counts, collections.Counter()))
    files = {name: sorted(paths, key=_composed) for name, paths in sorted(files.items())}
    empty = [name for name in files if not files[name]]
    if expected is None:
        if empty:
            raise UsageError(
                f"{folder} has no image for the class {_few(empty)}: delete the folder or put "
                f"images in, with names that end in {', '.join(IMAGE_ENDINGS)}"
            )
        return files
    known = {_composed(name) for name in expected}
    if adds := [name for name in files if files[name] and name not in known]:
        raise UsageError(
            f"{folder} must have no other class folders than were trained on, but it adds "
            f"{_few(adds)}"
        )
    files = {name: files.get(_composed(name), []) for name in expected}
    if not any(files.values()):
        raise UsageError(
            f"{folder} has no image: put images in {folder}/CLASS/, with names that end in "
            f"{', '.join(IMAGE_ENDINGS)}"
        )
    if lacks := [name for name in expected if not files[name]]:
        logging.warning("%s has no image of %s", folder, _few(lacks))
    return files


def _entries(folder: str) -> Iterator[tuple[str, bool]]:
    """Yields (name, is it a folder) of everything in a folder that is not hidden or litter."""
    try:
        for name, is_folder in (_remote if "://" in folder else _local)(folder):
            if name and not name.startswith(".") and name.lower() not in _LITTER:
                yield name, is_folder
    except (OSError, tf.errors.OpError) as error:
        raise UsageError(f"the folder {folder!r} cannot be read: {reason(error)}") from error


def _local(folder: str) -> Iterator[tuple[str, bool]]:
    for entry in os.scandir(folder):
        if entry.is_symlink() and entry.is_dir():
            target, above = os.path.realpath(entry.path), os.path.abspath(folder)
            while os.path.realpath(above) != target and above != os.path.dirname(above):
                above = os.path.dirname(above)
            if os.path.realpath(above) == target:
                raise UsageError(
                    f"the folder {entry.path!r} cannot be read: it is a link to {target!r}, which "
                    "holds it; remove the link"
                )
        yield entry.name, entry.is_dir()


def _remote(folder: str) -> Iterator[tuple[str, bool]]:
    for name in tf.io.gfile.listdir(folder):
        # Each isdir is a request. It is not needed for names with a slash, with which buckets mark
        # folders, nor for images, which are files.
        is_file = _is_image(name) or not (
            name.endswith("/") or tf.io.gfile.isdir(f"{folder}/{name}")
        )
        yield name.rstrip("/"), not is_file


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def _composed(name: str) -> str:
    """Returns a name in composed Unicode; file systems of macOS decompose it."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _few(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more


def _counts(endings: collections.Counter[str]) -> str:
    """Lists endings with their numbers of files, the most frequent first."""
    ordered = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} × {ending}" for ending, count in ordered)


def _hold_out(
    images: _Images, folder: str, holdout: float, by_file: bool
) -> tuple[_Images, _Images]:
    """Splits images into those that stay and those held out.

    Args:
        images: The images of each class.
        folder: The beginning of their paths that does not matter.
        holdout: The share that is held out.
        by_file: Decides about each file by itself if set. Otherwise each class has its exact share.
    """

    def draw(file: str) -> bytes:
        # The 0 is there because it always was: a resumed run must hold out the same images.
        text = _composed(f"0/{file.removeprefix(folder)}")
        return hashlib.blake2b(os.fsencode(text), digest_size=16).digest()

    below = int(holdout * 2**128).to_bytes(16)

    stay, held = {}, {}
    for name, files in images.items():
        draws = [draw(file) for file in files]
        share = sum(x < below for x in draws) if by_file else round(holdout * len(files))
        count = min(max(1, share), len(files) - 1)
        last = sorted(draws)[count - 1] if count else b""
        held[name] = [file for file, x in zip(files, draws, strict=True) if x <= last]
        stay[name] = [file for file, x in zip(files, draws, strict=True) if x > last]
    return stay, held


def _split(images: _Images, root: str) -> Split:
    # Bytes, because a file's name need not be text.
    paths = [os.fsencode(file) for files in images.values() for file in files]
    counts = [len(files) for files in images.values()]
    labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    path_of, label_of = tf.constant(paths), tf.constant(labels)

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
        len(paths),
        get,
        lambda i: paths[i].decode(errors="replace"),
        fingerprint,
        labels=lambda: labels,
    )


def _size(path: bytes) -> int:
    try:
        return tf.io.gfile.stat(path).length
    except tf.errors.OpError:
        return -1  # the file has gone meanwhile
