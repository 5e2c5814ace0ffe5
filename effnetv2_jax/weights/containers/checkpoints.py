"""TensorFlow checkpoints: graphs of TensorFlow 1, object graphs of TensorFlow 2, archives of both.

The variables of a graph have names, those of an object graph have paths of attributes. Both may
hold moving averages and an optimiser's slots.
"""

import contextlib
import pathlib
import re
import tarfile
import tempfile
from collections.abc import Iterator

import numpy as np

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.extras import hush_tensorflow, need
from effnetv2_jax.weights.containers.tensors import Tensors

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = re.compile(r"(.*)/\.OPTIMIZER_SLOT/.*/([^/]*)")
# The names of a variable's moving average in TensorFlow 1, and in TensorFlow Addons.
_AVERAGES = ("ExponentialMovingAverage", "average")


@contextlib.contextmanager
def open_checkpoint(prefix: pathlib.Path, ema: bool) -> Iterator[Tensors]:
    """Opens a checkpoint's variables without the optimiser's slots.

    Args:
        prefix: The beginning of its files' names, before ``.index`` and ``.data-…``.
        ema: Takes the moving average of a variable if there is one.

    Raises:
        UsageError: If it is damaged.
    """
    need("train", "a TensorFlow checkpoint")
    hush_tensorflow(2)
    import tensorflow as tf  # takes seconds, and only this needs it

    # TensorFlow raises all of these for files that are cut short.
    broken = (tf.errors.OpError, ValueError, RuntimeError, IndexError)

    def guarded(call, *arguments):
        try:
            return call(*arguments)
        except broken as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"the checkpoint {str(prefix)!r} cannot be read: {reason}") from error

    reader = guarded(tf.train.load_checkpoint, str(prefix))
    stored = reader.get_variable_to_shape_map()
    keys = _keys(stored, ema)
    shapes = {name: tuple(stored[key]) for name, key in keys.items()}

    def read(name: str) -> np.ndarray:
        return guarded(reader.get_tensor, keys[name])

    yield Tensors(prefix, shapes, read)


def _keys(stored: dict[str, list[int]], ema: bool) -> dict[str, str]:
    """Returns the key that each variable is stored under."""
    variables, averages = {}, {}
    for key in stored:
        name = key.removesuffix(_VALUE)
        slot = _SLOT.fullmatch(name)
        variable, last = (slot[1], slot[2]) if slot else (name.rpartition("/")[::2])
        if last in _AVERAGES:
            averages[variable] = key
        elif not slot and variable not in stored:  # else a slot such as …/kernel/RMSProp
            variables[name] = key
    return variables | averages if ema else averages | variables


def find_prefix(folder: pathlib.Path) -> pathlib.Path | None:
    """Finds the checkpoint in a folder: the one its file ``checkpoint`` names, or the only one.

    Returns:
        The prefix of its files; None if there is no checkpoint.

    Raises:
        UsageError: If there are several and none is named.
    """
    prefixes = sorted(path.with_suffix("") for path in folder.glob("*.index"))
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (folder / "checkpoint").read_text()
        if match := re.search(r'^model_checkpoint_path: "(?:.*/)?([^"/]+)"', text, re.MULTILINE):
            prefixes = [path for path in prefixes if path.name == match[1]] or prefixes
    if len(prefixes) > 1:
        names = ", ".join(path.name for path in prefixes)
        raise UsageError(f"{str(folder)!r} holds several checkpoints, name one of {names}")
    return prefixes[0] if prefixes else None


@contextlib.contextmanager
def open_tar(path: pathlib.Path, ema: bool) -> Iterator[Tensors]:
    """Opens the checkpoint in a ``.tgz`` as it was published.

    Only the checkpoint's files are unpacked, without their folders, into a temporary folder.

    Raises:
        UsageError: If the archive is damaged, holds no checkpoint, or a path that leads out of it.
    """
    with tempfile.TemporaryDirectory(prefix="effnetv2_jax_") as folder:
        target = pathlib.Path(folder)
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    _unpack(archive, member, target)
        except UsageError:
            raise
        except Exception as error:  # tarfile raises errors of many types for damaged bytes
            # If nothing fits, it has a line for every kind of compression that it tried.
            reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(":")
            raise UsageError(f"the archive {str(path)!r} cannot be unpacked: {reason}") from error
        prefix = find_prefix(target)
        if prefix is None:
            raise UsageError(f"the archive {str(path)!r} holds no TensorFlow checkpoint")
        with open_checkpoint(prefix, ema) as tensors:
            yield Tensors(path, tensors.shapes, tensors.read)


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, target: pathlib.Path) -> None:
    # Python's own rules: no absolute paths, no paths that lead out, no devices.
    tarfile.data_filter(member, str(target))
    name = pathlib.PurePosixPath(member.name).name
    wanted = name == "checkpoint" or re.search(r"\.(index|data-\d+-of-\d+)$", name)
    if not member.isfile() or not wanted or name.startswith("._"):
        return
    if (target / name).exists():
        raise UsageError(f"the archive {archive.name!r} holds several files {name!r}")
    source = archive.extractfile(member)
    assert source is not None  # because it is a file
    with source, (target / name).open("wb") as file:
        while chunk := source.read(1 << 20):
            file.write(chunk)
