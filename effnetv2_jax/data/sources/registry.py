"""Data sets by name.

A new one is a function that returns a ``Source``, and a line in ``SOURCES``. A data set of TFDS is
only a line in ``tfds.TFDS_DATASETS``.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from effnetv2_jax.data.sources import Source, imagenet
from effnetv2_jax.data.sources.digits import Digits
from effnetv2_jax.data.sources.folder import folder_source
from effnetv2_jax.data.sources.synthetic import synthetic_source
from effnetv2_jax.data.sources.tfds import PREFIX, TFDS_DATASETS, open_tfds, tfds_source
from effnetv2_jax.runtime.errors import UsageError, unknown_name

FOLDER_PREFIX = "folder:"


def get_source(
    name: str,
    data_dir: str | None = None,
    *,
    holdout: float = 0.1,
    class_names: Sequence[str] | None = None,
) -> Source:
    """Opens a data set. If it is not on disk and TFDS can prepare it, that is done first.

    Args:
        name: A name in ``SOURCES`` or ``TFDS_DATASETS``, ``folder:PATH`` for your own images, or
            ``tfds:NAME`` for any other data set of TFDS.
        data_dir: The folder of the data: TFDS's (None means its default, ``TFDS_DATA_DIR`` or
            ``~/tensorflow_datasets``), or that of the official TFRecords of ImageNet and
            ImageNet-21k.
        holdout: The share of a folder's training images that becomes its split ``val`` if it has
            no folder ``val/``.
        class_names: The classes of a folder in the order of their labels, if they are known. None
            takes them from its training images.

    Raises:
        UsageError: For an unknown name, and for data that are missing or not laid out as they
            should be.
    """
    if name.startswith(FOLDER_PREFIX):
        source = folder_source(
            name.removeprefix(FOLDER_PREFIX), holdout=holdout, class_names=class_names
        )
    elif name in SOURCES:
        source = SOURCES[name](data_dir)
    elif name in TFDS_DATASETS or name.startswith(PREFIX):
        source = open_tfds(name, data_dir)
    else:
        allowed = [*{*SOURCES, *TFDS_DATASETS}, f"{FOLDER_PREFIX}PATH", f"{PREFIX}NAME"]
        raise unknown_name("data set", name, allowed)
    # Opening a split may list a folder or read an index of a million records, so it is done once.
    return dataclasses.replace(source, split=functools.cache(source.split))


def _imagenet(data_dir: str | None) -> Source:
    if data_dir and imagenet.is_imagenet_dir(data_dir):
        return imagenet.imagenet_source(data_dir)
    return open_tfds("imagenet2012", data_dir)


def _imagenet21k(data_dir: str | None) -> Source:
    if not data_dir:
        raise UsageError(
            "imagenet21k needs data.dir: the folder with its official TFRecords, imagenet21k*"
        )
    return imagenet.imagenet21k_source(data_dir)


SOURCES: dict[str, Callable[[str | None], Source]] = {
    "digits": lambda data_dir: tfds_source("digits", Digits(data_dir=data_dir)),
    "imagenet2012": _imagenet,
    "imagenet21k": _imagenet21k,
    "synthetic": lambda data_dir: synthetic_source(),
}
"""Functions of data_dir that open a data set."""
