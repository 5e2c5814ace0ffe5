"""HDF5 files as Keras writes them, and Keras archives with one inside.

Keras 2 and 3 write ``.h5`` files with names. Keras 3 also writes ``.weights.h5`` files with
numbers, and ``.keras`` archives that hold one of these.
"""

import contextlib
import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.extras import need
from effnetv2_jax.weights.containers.tensors import Tensors


@contextlib.contextmanager
def open_hdf5(path: pathlib.Path) -> Iterator[Tensors]:
    """Opens the weights in a ``.h5`` or ``.weights.h5`` file.

    Raises:
        UsageError: If it is damaged.
    """
    with path.open("rb") as file, _read(path, file) as tensors:
        yield tensors


@contextlib.contextmanager
def open_archive(path: pathlib.Path) -> Iterator[Tensors]:
    """Opens the weights in a ``.keras`` archive, and ignores everything else in it.

    Raises:
        UsageError: If it is damaged.
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
    need("train", "a file of Keras")
    import h5py  # only these files need it

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
    """Turns ``[model_weights/]stem_conv/stem_conv/kernel:0`` into ``stem_conv/kernel``."""
    if "/vars/" in where or "/" not in where:
        return where
    layer, leaf = where.removesuffix(":0").split("/")[-2:]
    # Keras 3 calls a depthwise kernel kernel.
    return f"{layer}/{leaf.replace('depthwise_kernel', 'kernel')}"
