"""HDF5 files as Keras writes them, and Keras archives with one inside.

Keras 2 and 3 write ``.h5`` files with names. Keras 3 also writes ``.weights.h5`` files with
numbers, and ``.keras`` archives that hold one of these.
"""

import contextlib
import pathlib
import zipfile
from collections.abc import Iterator
from typing import IO

import numpy as np

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.extras import need
from effnetv2_jax.weights.containers.tensors import Tensors


@contextlib.contextmanager
def open_hdf5(path: pathlib.Path, archived: bool = False) -> Iterator[Tensors]:
    """Opens the weights in a ``.h5`` or ``.weights.h5`` file.

    Args:
        path: The file.
        archived: The file is a ``.keras`` archive. Everything in it but the weights is ignored.

    Raises:
        UsageError: If it is damaged.
    """
    need("train", "a file of Keras")
    import h5py  # only these files need it

    places: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def note(where: str, found: object) -> None:
        if isinstance(found, h5py.Dataset):
            name = _name(where)
            name = where if name in places else name
            places[name], shapes[name] = where, found.shape

    with contextlib.ExitStack() as opened:
        try:
            file: IO[bytes] = opened.enter_context(path.open("rb"))
            if archived:
                archive = opened.enter_context(zipfile.ZipFile(file))
                file = opened.enter_context(archive.open("model.weights.h5"))
            hdf5 = opened.enter_context(h5py.File(file, "r"))
            hdf5.visititems(note)
        except Exception as error:  # h5py raises errors of many types for damaged bytes
            raise UsageError(f"{str(path)!r} is no HDF5 file, or damaged: {error}") from error

        def read(name: str) -> np.ndarray:
            try:
                return hdf5[places[name]][()]
            except Exception as error:
                raise UsageError(f"{name} cannot be read from {str(path)!r}: {error}") from error

        yield Tensors(path, shapes, read)


def _name(where: str) -> str:
    """Turns ``[model_weights/]stem_conv/stem_conv/kernel:0`` into ``stem_conv/kernel``.

    The layers of a model in another model keep the text before them.
    """
    *path, leaf = where.removeprefix("model_weights/").removesuffix(":0").split("/")
    if "vars" in path or not path:
        return where
    if path[0] == path[-1]:
        path = path[-1:]
    # Keras 3 calls a depthwise kernel kernel.
    return "/".join([*path, leaf.replace("depthwise_kernel", "kernel")])
