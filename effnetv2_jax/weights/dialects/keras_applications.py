"""``keras.applications``' EfficientNets: what their files hold, and what they call it.

Three kinds of files: ``.h5`` as Keras 2 and 3 write them, with names; ``.weights.h5`` of Keras 3,
with numbers; ``.keras``, an archive with one of the latter inside.
"""

import contextlib
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping

import h5py
import numpy as np

from effnetv2_jax.models import EfficientNetSpec
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import layout
from effnetv2_jax.weights.containers.tensors import Tensors
from effnetv2_jax.weights.dialects.dialect import (
    Axes,
    BlockTable,
    Dialect,
    Leaves,
    as_published,
    by_table,
)
from effnetv2_jax.weights.layout import Kind

_LEAVES: Leaves = {
    "conv": {"kernel": "kernel", "bias": "bias"},
    "depthwise": {"kernel": "kernel"},
    "norm": {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"},
    "dense": {"kernel": "kernel", "bias": "bias"},
}
AXES: Axes = {"conv": (0, 1, 2, 3), "depthwise": (0, 1, 3, 2), "dense": (0, 1)}
"""TensorFlow's: [height, width, in, out], [height, width, channels, 1], [in, out]."""

_OUTSIDE = {
    "stem.conv": "stem_conv",
    "stem.norm": "stem_bn",
    "head.conv": "top_conv",
    "head.norm": "top_bn",
    "classifier": "predictions",
}


def _blocks(depthwise: str) -> BlockTable:
    expand = {"expand.conv": "expand_conv", "expand.norm": "expand_bn"}
    project = {"project.conv": "project_conv", "project.norm": "project_bn"}
    squeeze = {"se.reduce": "se_reduce", "se.expand": "se_expand"}
    middle = {"depthwise.conv": depthwise, "depthwise.norm": "bn"} | squeeze
    return {
        ("mbconv", True): expand | middle | project,
        ("mbconv", False): middle | project,
        ("fused", True): expand | squeeze | project,
        ("fused", False): squeeze | project,
    }


def _named(version: str, anchor: str, depthwise: str) -> Dialect:
    return Dialect(
        name=f"keras.applications ({version})",
        anchor=anchor,
        layer_names=by_table(_OUTSIDE, "block{stage}{letter}_", _blocks(depthwise)),
        leaves=_LEAVES,
        axes=AXES,
        separator="/",
        territory=re.compile(r"(stem_|block\d|top_|predictions).*"),
        trained=as_published,
    )


# The first block has a depthwise convolution in V1 alone.
KERAS_V1 = _named("V1", "block1a_dwconv/kernel", "dwconv")
KERAS_V2 = _named("V2", "block1a_project_conv/kernel", "dwconv2")

_CLASSES: dict[Kind, str] = {
    "conv": "conv2d",
    "depthwise": "depthwise_conv2d",
    "norm": "batch_normalization",
    "dense": "dense",
}


def _numbers(spec: EfficientNetSpec) -> Mapping[str, str]:
    """Keras 3 numbers the layers of each class in the order of the model's, which is ours."""
    counts = dict.fromkeys(_CLASSES, 0)
    names = {}
    for layer in layout.layers(spec, num_classes=1):
        number = counts[layer.kind]
        names[layer.name] = f"layers/{_CLASSES[layer.kind]}{f'_{number}' if number else ''}/vars"
        counts[layer.kind] += 1
    return names


KERAS_NUMBERS = Dialect(
    name="keras.applications (Keras 3)",
    anchor="layers/conv2d/vars/0",
    layer_names=_numbers,
    leaves={
        kind: {ours: str(i) for i, ours in enumerate(leaves)} for kind, leaves in _LEAVES.items()
    },
    axes=AXES,
    separator="/",
    territory=re.compile(rf"layers/({'|'.join(_CLASSES.values())})(_\d+)?/.*"),
    trained=as_published,
)


@contextlib.contextmanager
def open_hdf5(path: pathlib.Path) -> Iterator[Tensors]:
    """The weights in a ``.h5`` or ``.weights.h5`` file.

    Raises:
        UsageError: if it is broken.
    """
    with path.open("rb") as file, _read(path, file) as tensors:
        yield tensors


@contextlib.contextmanager
def open_archive(path: pathlib.Path) -> Iterator[Tensors]:
    """The weights in a ``.keras`` archive, of which nothing else is looked at.

    Raises:
        UsageError: if it is broken.
    """
    try:
        with (
            zipfile.ZipFile(path) as archive,
            archive.open("model.weights.h5") as file,
            _read(path, file) as tensors,
        ):
            yield tensors
    except zipfile.BadZipFile as error:
        raise UsageError(f"{str(path)!r} is damaged: {error}") from error


@contextlib.contextmanager
def _read(path: pathlib.Path, file) -> Iterator[Tensors]:
    try:
        hdf5 = h5py.File(file, "r")
    except OSError as error:
        raise UsageError(f"{str(path)!r} is no HDF5 file, or damaged: {error}") from error
    with hdf5:
        places: dict[str, str] = {}
        shapes: dict[str, tuple[int, ...]] = {}

        def note(where: str, found: object) -> None:
            if isinstance(found, h5py.Dataset):
                name = _name(where)
                places[name], shapes[name] = where, found.shape

        def read(name: str) -> np.ndarray:
            try:
                return hdf5[places[name]][()]
            except OSError as error:
                raise UsageError(f"{name} cannot be read from {str(path)!r}: {error}") from error

        hdf5.visititems(note)
        yield Tensors(path, shapes, read)


def _name(where: str) -> str:
    """``[model_weights/]stem_conv/stem_conv/kernel:0`` → ``stem_conv/kernel``."""
    if "/vars/" in where or "/" not in where:
        return where
    layer, leaf = where.removesuffix(":0").split("/")[-2:]
    # As Keras 3 calls it.
    return f"{layer}/{leaf.replace('depthwise_kernel', 'kernel')}"
