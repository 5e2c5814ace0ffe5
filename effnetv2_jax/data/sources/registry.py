"""Data sets by name.

A new one is a function that returns a ``Source``, and a line in ``SOURCES``; data sets of TFDS are
lines in ``tfds_source.TFDS_DATASETS``.
"""

import dataclasses
import functools
from collections.abc import Callable

from effnetv2_jax.data.sources.base import Source
from effnetv2_jax.data.sources.digits import Digits
from effnetv2_jax.data.sources.folder import folder_source
from effnetv2_jax.data.sources.imagenet import (
    imagenet21k_source,
    imagenet_source,
    is_imagenet_dir,
)
from effnetv2_jax.data.sources.synthetic import synthetic_source
from effnetv2_jax.data.sources.tfds import PREFIX, TFDS_DATASETS, open_tfds, tfds_source
from effnetv2_jax.runtime.errors import UsageError, unknown_name

FOLDER_PREFIX = "folder:"


def get_source(name: str, data_dir: str | None = None, *, holdout: float = 0.1) -> Source:
    """Opens a data set, preparing it first where it is not on disk and that can be done.

    Args:
        name: a name in ``SOURCES`` or ``TFDS_DATASETS``, ``folder:PATH`` for your own images, or
            ``tfds:NAME`` for any other of TFDS.
        data_dir: where the data are: TFDS's folder (None means its default, ``TFDS_DATA_DIR`` or
            ``~/tensorflow_datasets``), or the official TFRecords of ImageNet and ImageNet21k.
        holdout: share of a folder's training images that is its split ``val``, where it has no
            images for that.

    Raises:
        UsageError: for an unknown name, and for data that are not there or not as they should be.
    """
    return _with_splits_kept(_open(name, data_dir, holdout))


def _open(name: str, data_dir: str | None, holdout: float) -> Source:
    if name.startswith(FOLDER_PREFIX):
        return folder_source(name.removeprefix(FOLDER_PREFIX), holdout=holdout)
    if name in SOURCES:
        return SOURCES[name](data_dir)
    if name in TFDS_DATASETS or name.startswith(PREFIX):
        return open_tfds(name, data_dir)
    raise unknown_name(
        "data set", name, [*SOURCES, *TFDS_DATASETS, f"{FOLDER_PREFIX}PATH", f"{PREFIX}NAME"]
    )


def _with_splits_kept(source: Source) -> Source:
    """Opens every split once: that may read a folder or an index of a million records."""
    return dataclasses.replace(source, split=functools.cache(source.split))


def _digits(data_dir: str | None) -> Source:
    try:
        return tfds_source("digits", Digits(data_dir=data_dir))
    except OSError as error:
        raise UsageError(f"data_dir {data_dir!r} cannot be written: {error}") from error


def _imagenet(data_dir: str | None) -> Source:
    if data_dir and is_imagenet_dir(data_dir):
        return imagenet_source(data_dir)
    return open_tfds("imagenet2012", data_dir)


def _imagenet21k(data_dir: str | None) -> Source:
    if not data_dir:
        raise UsageError(
            "imagenet21k needs data.dir: the folder with its official TFRecords, imagenet21k*"
        )
    return imagenet21k_source(data_dir)


SOURCES: dict[str, Callable[[str | None], Source]] = {
    "digits": _digits,
    "imagenet2012": _imagenet,
    "imagenet21k": _imagenet21k,
    "synthetic": lambda data_dir: synthetic_source(),
}
"""Of (data_dir) → Source."""
