"""The optional dependencies: the sentence for one that is not installed, and a quiet TensorFlow."""

import importlib.util
import os
import sys
from collections.abc import Iterable

from effnetv2_jax.runtime.errors import UsageError

EXTRAS = {
    "train": (
        *("clu", "etils", "filelock", "h5py", "matplotlib", "ml_collections", "orbax.checkpoint"),
        *("PIL", "rich", "sklearn", "tensorboard", "tensorflow", "tensorflow_datasets"),
    ),
    "export": (
        *("ai_edge_litert", "einops", "equinox", "jax2onnx", "onnx", "onnx_ir", "onnxruntime"),
        "tensorflow",
    ),
    "tpu": ("libtpu",),
}
"""The modules that each extra of ``setup.py`` brings along."""

APART = {"jax2onnx": "pip install --no-deps jax2onnx"}
"""Modules that no extra can bring along, because they ask for versions that do not go with ours."""


class MissingExtraError(ImportError, UsageError):
    """An optional dependency that is not installed; the message is one sentence."""


def need(extra: str, what: str, modules: Iterable[str] | None = None) -> None:
    """Checks that an extra is installed, without importing any of it.

    Args:
        extra: A name in ``EXTRAS``.
        what: The program or function that needs it, for the message.
        modules: The modules of the extra that are needed; None for all of them.

    Raises:
        MissingExtraError: If a module of the extra cannot be found.
    """
    wanted = EXTRAS[extra] if modules is None else modules
    missing = [name for name in wanted if not _is_installed(name)]
    if missing:
        commands = [f"pip install 'effnetv2_jax[{extra}]'"] if set(missing) - set(APART) else []
        commands += [APART[name] for name in missing if name in APART]
        raise MissingExtraError(
            f"{what} needs {', '.join(missing)}: install them with {' and '.join(commands)}"
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # The package that a submodule is in.
        return False


def need_for_program(extra: str) -> None:
    """Ends the process with one sentence and exit code 2 if an extra is not installed.

    A program calls this before the imports that need the extra, see ``need``.
    """
    try:
        need(extra, "this program")
    except MissingExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def hush_tensorflow(level: int) -> None:
    """Sets how much TensorFlow logs, unless the user has set it; call this before importing it.

    Args:
        level: 1 leaves out information, 2 also warnings, 3 also errors.
    """
    # JAX sets it to 1 by itself.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = str(level)
    # An input pipeline computes with integers, for which oneDNN has only warnings.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
