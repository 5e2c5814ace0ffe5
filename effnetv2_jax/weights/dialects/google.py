"""The official TensorFlow checkpoints of google/automl and tensorflow/tpu.

Two kinds: graphs of TensorFlow 1, whose variables have names, and object graphs of TensorFlow 2,
whose variables have paths of attributes. Both may come with averages and an optimiser's slots.
"""

import contextlib
import pathlib
import re
import tarfile
import tempfile
from collections.abc import Iterator

import numpy as np

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.quiet import hush_tensorflow
from effnetv2_jax.weights.containers.tensors import Tensors
from effnetv2_jax.weights.dialects.dialect import Dialect, Leaves, as_published, by_table
from effnetv2_jax.weights.dialects.keras_applications import AXES

_LEAVES: Leaves = {
    "conv": {"kernel": "kernel", "bias": "bias"},
    "depthwise": {"kernel": "depthwise_kernel"},
    "norm": {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"},
    "dense": {"kernel": "kernel", "bias": "bias"},
}
_NORM = "tpu_batch_normalization"
_SE = {"se.reduce": "se/conv2d", "se.expand": "se/conv2d_1"}

GRAPH = Dialect(
    name="TensorFlow 1 (official)",
    anchor="stem/conv2d/kernel",
    layer_names=by_table(
        {
            "stem.conv": "stem/conv2d",
            "stem.norm": f"stem/{_NORM}",
            "head.conv": "head/conv2d",
            "head.norm": f"head/{_NORM}",
            "classifier": "head/dense",
        },
        "blocks_{number}/",
        {
            ("mbconv", True): {
                "expand.conv": "conv2d",
                "expand.norm": _NORM,
                "depthwise.conv": "depthwise_conv2d",
                "depthwise.norm": f"{_NORM}_1",
                **_SE,
                "project.conv": "conv2d_1",
                "project.norm": f"{_NORM}_2",
            },
            ("mbconv", False): {
                "depthwise.conv": "depthwise_conv2d",
                "depthwise.norm": _NORM,
                **_SE,
                "project.conv": "conv2d",
                "project.norm": f"{_NORM}_1",
            },
            ("fused", True): {
                "expand.conv": "conv2d",
                "expand.norm": _NORM,
                **_SE,
                "project.conv": "conv2d_1",
                "project.norm": f"{_NORM}_1",
            },
            ("fused", False): {**_SE, "project.conv": "conv2d", "project.norm": _NORM},
        },
    ),
    leaves=_LEAVES,
    axes=AXES,
    separator="/",
    territory=re.compile(r"(stem|blocks_\d+|head)/.*"),
    trained=as_published,
)

_SE_OBJECTS = {"se.reduce": "_se/_se_reduce", "se.expand": "_se/_se_expand"}

OBJECTS = Dialect(
    name="TensorFlow 2 (official)",
    anchor="_stem/_conv_stem/kernel",
    layer_names=by_table(
        {
            "stem.conv": "_stem/_conv_stem",
            "stem.norm": "_stem/_norm",
            "head.conv": "_head/_conv_head",
            "head.norm": "_head/_norm",
            "classifier": "_fc",
        },
        "_blocks/{number}/",
        {
            ("mbconv", True): {
                "expand.conv": "_expand_conv",
                "expand.norm": "_norm0",
                "depthwise.conv": "_depthwise_conv",
                "depthwise.norm": "_norm1",
                **_SE_OBJECTS,
                "project.conv": "_project_conv",
                "project.norm": "_norm2",
            },
            ("mbconv", False): {
                "depthwise.conv": "_depthwise_conv",
                "depthwise.norm": "_norm1",
                **_SE_OBJECTS,
                "project.conv": "_project_conv",
                "project.norm": "_norm2",
            },
            ("fused", True): {
                "expand.conv": "_expand_conv",
                "expand.norm": "_norm0",
                **_SE_OBJECTS,
                "project.conv": "_project_conv",
                "project.norm": "_norm1",
            },
            ("fused", False): {
                **_SE_OBJECTS,
                "project.conv": "_project_conv",
                "project.norm": "_norm1",
            },
        },
    ),
    leaves=_LEAVES,
    axes=AXES,
    separator="/",
    territory=re.compile(r"(_stem|_blocks|_head|_fc)/.*"),
    trained=as_published,
)

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = re.compile(r"(.*)/\.OPTIMIZER_SLOT/.*/([^/]*)")
# What TensorFlow 1, and TensorFlow Addons in TensorFlow 2, call the moving average of a variable.
_AVERAGES = ("ExponentialMovingAverage", "average")


@contextlib.contextmanager
def open_checkpoint(prefix: pathlib.Path, ema: bool) -> Iterator[Tensors]:
    """A checkpoint's variables without the optimiser's slots.

    Args:
        prefix: of its files, ``….index`` and ``….data-…``.
        ema: takes the moving average of a variable where there is one.

    Raises:
        UsageError: if it is broken.
    """
    hush_tensorflow(2)
    import tensorflow as tf  # seconds, and only this needs it

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
    """Name of a variable → what it is stored under."""
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
    """The checkpoint in a folder: the one its file ``checkpoint`` names, or the only one.

    Returns:
        The prefix of its files; None where there is none.

    Raises:
        UsageError: where it is not clear which.
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
    """The checkpoint in a ``.tgz`` as it was published.

    Its files alone are unpacked, into a temporary folder, under their last names; an archive with
    paths that lead elsewhere is refused.

    Raises:
        UsageError: if it is broken, holds no checkpoint, or paths that lead out of it.
    """
    with tempfile.TemporaryDirectory(prefix="effnetv2_jax_") as folder:
        target = pathlib.Path(folder)
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    _unpack(archive, member, target)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UsageError(f"the archive {str(path)!r} cannot be unpacked: {error}") from error
        prefix = find_prefix(target)
        if prefix is None:
            raise UsageError(f"the archive {str(path)!r} holds no TensorFlow checkpoint")
        with open_checkpoint(prefix, ema) as tensors:
            yield Tensors(path, tensors.shapes, tensors.read)


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, target: pathlib.Path) -> None:
    # Python's own rules: no absolute paths, none that lead out, no devices.
    tarfile.data_filter(member, str(target))
    name = pathlib.PurePosixPath(member.name).name
    wanted = name == "checkpoint" or re.search(r"\.(index|data-\d+-of-\d+)$", name)
    if not member.isfile() or not wanted or name.startswith("._"):
        return
    if (target / name).exists():
        raise UsageError(f"the archive {archive.name!r} holds several files {name!r}")
    source = archive.extractfile(member)
    assert source is not None  # as it is a file
    with source, (target / name).open("wb") as file:
        while chunk := source.read(1 << 20):
            file.write(chunk)
