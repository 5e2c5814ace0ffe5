"""Weights out of a model: safetensors in our names or timm's, or an Orbax folder."""

import pathlib

import numpy as np

from effnetv2_jax.models.family import CLASSIFIER, Network
from effnetv2_jax.models.registry import family_of
from effnetv2_jax.runtime.errors import UsageError, unknown_name
from effnetv2_jax.runtime.files import local_path, whole_file
from effnetv2_jax.weights import description, layout
from effnetv2_jax.weights.containers import folders
from effnetv2_jax.weights.dialects.dialect import OURS, get_dialect
from effnetv2_jax.weights.read import Weights

NAMINGS = (OURS, "timm")
"""The libraries whose names ``save_weights`` can write."""

_ENDING = ".safetensors"


def save_weights(
    model: Network | Weights,
    path: str | pathlib.Path,
    *,
    naming: str = OURS,
    class_names: tuple[str, ...] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a model's parameters and batch statistics, whole or not at all.

    >>> save_weights(model, "b0.safetensors", naming="timm")  # doctest: +SKIP

    Args:
        model: A model, or the result of ``read_weights``.
        path: A path that ends in .safetensors for a file; any other path becomes an Orbax folder.
        naming: The names of the tensors, ``effnetv2_jax`` or ``timm``. timm's names need a
            safetensors file, which ``timm.create_model(NAME, checkpoint_path=PATH)`` reads.
        class_names: The names of the classes, to be written beside a model's weights.
        overwrite: Replaces an existing file.

    Raises:
        UsageError: If the naming is unknown, or the path exists or cannot be written.
    """
    import safetensors.numpy

    path = local_path(path)
    weights = model if isinstance(model, Weights) else as_weights(model, class_names)
    if naming not in NAMINGS:
        raise unknown_name("naming", naming, NAMINGS)
    if path.suffix != _ENDING and naming != OURS:
        raise UsageError(
            f"naming {naming!r} needs a file that ends in {_ENDING}, got {str(path)!r}"
        )
    if path.exists() and not (overwrite and path.is_file()):
        what = ", or overwrite it" if path.is_file() else ", as no folder is overwritten"
        raise UsageError(f"{str(path)!r} exists already: choose another path{what}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != _ENDING:
            folders.write(path, weights.tensors, weights.description)
            return
        tensors, about = _renamed(weights, naming)
        with whole_file(path) as temporary:
            safetensors.numpy.save_file(tensors, temporary, metadata=about)
    except (OSError, safetensors.SafetensorError) as error:
        raise UsageError(f"{str(path)!r} cannot be written: {error}") from error


def as_weights(model: Network, class_names: tuple[str, ...] | None) -> Weights:
    """Returns a model's weights, copied to the host.

    Raises:
        UsageError: If there are more or fewer names than classes.
    """
    tensors = {name: np.asarray(x[...]) for name, x in layout.variables(model).items()}
    bias = tensors.get(f"{CLASSIFIER}.bias")
    num_classes = 0 if bias is None else bias.shape[0]
    if class_names is not None and len(class_names) != num_classes:
        raise UsageError(f"got {len(class_names)} class_names for {num_classes} classes")
    return Weights(model.spec, num_classes, tensors, class_names, origin=model.spec.name)


def _renamed(weights: Weights, naming: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the tensors in a library's names, and the metadata beside them."""
    about = {"format": "flax", description.KEY: weights.description.to_json()}
    if naming == OURS:
        return dict(weights.tensors), about
    dialect = get_dialect(family_of(weights.spec), naming)
    places = dialect.places(weights.spec, weights.num_classes)
    tensors = {
        places[name].name: places[name].to_theirs(array) for name, array in weights.tensors.items()
    }
    about["format"] = "pt"
    if name := dialect.names.their_model(weights.spec):
        about["architecture"] = name
    return tensors, about
