"""What the optional dependencies are for, and the sentence for one that is not installed."""

import importlib.util

EXTRAS = {
    "train": (
        "clu",
        "etils",
        "h5py",
        "matplotlib",
        "ml_collections",
        "orbax.checkpoint",
        "PIL",
        "rich",
        "sklearn",
        "tensorboard",
        "tensorflow",
        "tensorflow_datasets",
    ),
    "tpu": ("libtpu",),
}
"""The modules that each extra of ``setup.py`` brings along."""


class MissingExtraError(ImportError):
    """An optional dependency that is not installed; the message is one sentence."""


def need(extra: str, what: str) -> None:
    """Checks that an extra is installed, without importing any of it.

    Args:
        extra: A name in ``EXTRAS``.
        what: The program or function that needs it, for the message.

    Raises:
        MissingExtraError: If a module of the extra cannot be found.
    """
    missing = [name for name in EXTRAS[extra] if not _is_installed(name)]
    if missing:
        raise MissingExtraError(
            f"{what} needs {', '.join(missing)}: install them with "
            f"pip install 'effnetv2_jax[{extra}]'"
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # The package that a submodule is in.
        return False
