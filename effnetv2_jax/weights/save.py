"""Weights out of a model: safetensors in our names or timm's, or an Orbax folder."""

import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from effnetv2_jax.models import EfficientNetSpec, Network, Spec, VisionTransformerSpec
from effnetv2_jax.runtime.errors import UsageError, unknown_name
from effnetv2_jax.weights import description, layout
from effnetv2_jax.weights.containers import checkpoints as orbax
from effnetv2_jax.weights.dialects.dialect import Dialect
from effnetv2_jax.weights.dialects.pytorch import TIMM, timm_architecture
from effnetv2_jax.weights.dialects.timm_vit import TIMM_VIT, timm_vit_architecture
from effnetv2_jax.weights.layout import CLASSIFIER
from effnetv2_jax.weights.read import Weights

_ENDING = ".safetensors"


def save_weights(
    model: Network | Weights,
    path: str | pathlib.Path,
    *,
    naming: str = "effnetv2_jax",
    class_names: tuple[str, ...] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a model's parameters and batch statistics; there whole or not at all.

    Args:
        model: a model, or what ``read_weights`` returned.
        path: ending in .safetensors for one file; otherwise a folder for Orbax to make.
        naming: of tensors: ``effnetv2_jax``, or ``timm`` (safetensors alone), whose files
            ``timm.create_model(NAME, checkpoint_path=PATH)`` reads.
        class_names: one a class, to be written beside a model's.
        overwrite: replaces a file that is there.

    Raises:
        UsageError: for an unknown naming, a path that is taken or cannot be written.
    """
    import safetensors.numpy

    path = pathlib.Path(path).expanduser()
    weights = model if isinstance(model, Weights) else _weights(model, class_names)
    if naming not in _NAMINGS:
        raise unknown_name("naming", naming, _NAMINGS)
    if path.suffix != _ENDING and naming != "effnetv2_jax":
        raise UsageError(f"naming {naming!r} is of files that end in {_ENDING}, got {str(path)!r}")
    if path.exists() and not (overwrite and path.is_file()):
        raise UsageError(f"{str(path)!r} is there already: take another path, or overwrite a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != _ENDING:
            orbax.write(path, weights.tensors, weights.description)
            return
        tensors, about = _NAMINGS[naming](weights)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".effnetv2_jax_") as folder:
            temporary = pathlib.Path(folder) / path.name
            safetensors.numpy.save_file(dict(tensors), temporary, metadata=dict(about))
            temporary.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UsageError(f"{str(path)!r} cannot be written: {error}") from error


def _weights(model: Network, class_names: tuple[str, ...] | None) -> Weights:
    tensors = {name: np.asarray(x) for name, x in layout.tensors(model).items()}
    bias = tensors.get(f"{CLASSIFIER}.bias")
    num_classes = 0 if bias is None else bias.shape[0]
    if class_names is not None and len(class_names) != num_classes:
        raise UsageError(f"got {len(class_names)} class_names for {num_classes} classes")
    return Weights(model.spec, num_classes, tensors, class_names, origin=model.spec.name)


def _in_our_names(weights: Weights) -> tuple[Mapping[str, np.ndarray], Mapping[str, str]]:
    return weights.tensors, {"format": "flax", description.KEY: weights.description.to_json()}


# timm's names of the tensors, and what it calls the network.
_TIMM: dict[type[Spec], tuple[Dialect, Callable[[Any], str | None]]] = {
    EfficientNetSpec: (TIMM, timm_architecture),
    VisionTransformerSpec: (TIMM_VIT, timm_vit_architecture),
}


def in_timm(spec: Spec) -> str | None:
    """The network of timm that computes what a spec says; None where there is none by name."""
    return _TIMM[type(spec)][1](spec)


def _in_timms(weights: Weights) -> tuple[Mapping[str, np.ndarray], Mapping[str, str]]:
    dialect, _ = _TIMM[type(weights.spec)]
    places = dialect.places(weights.spec, weights.num_classes)
    tensors = {
        places[name].name: places[name].to_theirs(array) for name, array in weights.tensors.items()
    }
    name = in_timm(weights.spec)
    about = {"format": "pt", description.KEY: weights.description.to_json()}
    return tensors, about | ({"architecture": name} if name else {})


_NAMINGS = {"effnetv2_jax": _in_our_names, "timm": _in_timms}
