"""Opening any file or folder of weights, whose kind is told by its content, not by its name."""

import contextlib
import json
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import description
from effnetv2_jax.weights.containers import checkpoints, folders, hdf5, pth
from effnetv2_jax.weights.containers.tensors import Tensors

IN_REPOSITORIES = ("model.safetensors", "pytorch_model.bin")
"""The names of the weights in a Hugging Face repository; the first one counts."""

_ENDINGS = re.compile(r"(\.(safetensors|pth|pt|bin|tar|ckpt))+$")

Opened = contextlib.AbstractContextManager[Tensors]


def open_tensors(path: pathlib.Path, ema: bool = True) -> Opened:
    """Opens a file or a folder.

    Args:
        path: A file of safetensors, PyTorch, HDF5 or Keras, or a tar archive with a TensorFlow
            checkpoint; a folder with one of these, a run's workdir, or a folder that
            ``save_weights`` wrote; or the prefix of a TensorFlow checkpoint.
        ema: Takes the moving averages if there are both.

    Raises:
        UsageError: If there is nothing at the path, or nothing that is known.
    """
    try:
        if path.is_dir():
            return _open_folder(path, ema)
        if not path.exists() and path.with_name(f"{path.name}.index").exists():
            return checkpoints.open_checkpoint(path, ema)
        with path.open("rb") as file:
            start = file.read(_LONGEST_BEGINNING)
    except OSError as error:
        raise UsageError(f"weights {str(path)!r} cannot be read: {error.strerror}") from error
    for begins, reason in _NO_WEIGHTS:
        if re.match(begins, start, re.DOTALL | re.IGNORECASE):
            raise UsageError(f"{str(path)!r} {reason}")
    for begins, opener in _BEGINNINGS:
        if re.match(begins, start, re.DOTALL):
            return opener(path, ema)
    raise UsageError(
        f"{str(path)!r} holds no weights that are known: it is no file of safetensors, PyTorch, "
        "Keras or HDF5, no tar archive, and no part of a TensorFlow checkpoint"
    )


def _open_folder(path: pathlib.Path, ema: bool) -> Opened:
    if folders.holds_run(path):
        return folders.open_run(path, ema)
    if folders.holds_weights(path):
        return folders.open_weights(path)
    for name in IN_REPOSITORIES:
        if (path / name).is_file():
            return open_tensors(path / name, ema)
    prefix = checkpoints.find_prefix(path)
    if prefix is None:
        raise UsageError(
            f"the folder {str(path)!r} holds no weights: no checkpoints/ of a run, no weights/ of "
            f"ours, none of {', '.join(IN_REPOSITORIES)}, and no TensorFlow checkpoint"
        )
    return checkpoints.open_checkpoint(prefix, ema)


def _open_zip(path: pathlib.Path) -> Opened:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # zipfile raises errors of many types for damaged bytes
        raise UsageError(f"the archive {str(path)!r} is damaged: {error}") from error
    if names and all(name.endswith(".npy") for name in names):
        raise UsageError(
            f"{str(path)!r} is an .npz of NumPy, which is not read: save its arrays as safetensors"
        )
    return hdf5.open_hdf5(path, True) if "model.weights.h5" in names else _open_pth(path)


@contextlib.contextmanager
def _open_pth(path: pathlib.Path) -> Iterator[Tensors]:
    with pth.open_pth(path) as tensors:
        yield Tensors(path, tensors.shapes, tensors.read, {**_about(path), **tensors.about})


@contextlib.contextmanager
def _open_safetensors(path: pathlib.Path) -> Iterator[Tensors]:
    import safetensors

    try:
        file = safetensors.safe_open(path, framework="np")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise UsageError(f"{str(path)!r} is no safetensors file, or damaged: {error}") from error

    def read(name: str) -> np.ndarray:
        try:
            return file.get_tensor(name)
        except safetensors.SafetensorError as error:
            raise UsageError(f"{name} cannot be read from {str(path)!r}: {error}") from error

    with file:
        metadata = file.metadata() or {}
        known = {x: metadata[x] for x in ("architecture", description.KEY) if x in metadata}
        yield Tensors(path, shapes, read, _about(path) | known)


def _about(path: pathlib.Path) -> dict[str, Any]:
    """Returns the names of the file and its folder, and what timm's config.json beside it says."""
    about: dict[str, Any] = {"names": (_ENDINGS.sub("", path.name), path.absolute().parent.name)}
    beside = path.parent / "config.json"
    try:
        config = json.loads(beside.read_text(encoding="utf-8"))
    except OSError:
        return about
    except ValueError as error:
        raise UsageError(f"{str(beside)!r}, beside the weights, is no JSON: {error}") from error
    if isinstance(config, dict) and "architecture" in config:
        about["architecture"] = str(config["architecture"])
        # timm's first config.json had no pretrained_cfg.
        about["pretrained_cfg"] = config.get("pretrained_cfg") or config
        about["model_args"] = config.get("model_args") or {}
        for name in ("pretrained_cfg", "model_args"):
            if not isinstance(about[name], dict):
                raise UsageError(f"{name} in {str(beside)!r} must be an object")
        if config.get("global_pool"):
            about["model_args"] = {"global_pool": config["global_pool"]} | about["model_args"]
    return about


# The beginnings of files that stand in the place of weights.
_NO_WEIGHTS: tuple[tuple[bytes, str], ...] = (
    (rb"$", "is empty"),
    (
        rb"version https://git-lfs",
        "is a Git LFS pointer, which stands for a file that was not fetched: run git lfs pull",
    ),
    (
        rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--)",
        "is a web page and no weights, perhaps the answer of a server that refused the download",
    ),
)

# The beginnings of files; the first match counts. Safetensors begin with the length of their JSON.
_BEGINNINGS: tuple[tuple[bytes, Callable[[pathlib.Path, bool], Opened]], ...] = (
    # First: the length of its header, below 2⁴⁰, may begin as any of the others do.
    (rb".{5}\0{3}\{", lambda path, ema: _open_safetensors(path)),
    (rb"PK\x03\x04", lambda path, ema: _open_zip(path)),
    (rb"\x89HDF\r\n\x1a\n", lambda path, ema: hdf5.open_hdf5(path)),
    (rb"\x1f\x8b", checkpoints.open_tar),
    (re.escape(pth.LEGACY_START), lambda path, ema: _open_pth(path)),
    (rb"\x80[\x02-\x05]", lambda path, ema: _open_pth(path)),
    (rb".{257}ustar", checkpoints.open_tar),
)
_LONGEST_BEGINNING = 262
