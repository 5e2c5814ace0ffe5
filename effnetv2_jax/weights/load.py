"""Weights into a model."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from effnetv2_jax.models import Network, Spec
from effnetv2_jax.models.layers import BatchNorm, Conv, DepthwiseConv
from effnetv2_jax.models.registry import build
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import layout
from effnetv2_jax.weights.layout import CLASSIFIER
from effnetv2_jax.weights.positions import POSITIONS, grid_of, interpolate
from effnetv2_jax.weights.read import Weights, read_weights


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What was loaded.

    Attributes:
        origin: where the weights come from.
        spec: of the model as it is now, with what it took over from the weights.
        num_classes: of the model's classifier; 0 where it has none.
        class_names: of the weights' classes, one each; None where they are not known, or the
            classifier was not loaded.
        tensors: how many were loaded.
        not_loaded: names of the model's tensors and of the weights' that were left out.
        changes: fields of the spec that the model took over, as its own had them otherwise.
        reason: why tensors were left out; empty where none was.
        interpolated: what was interpolated for other images than the weights are for; empty where
            nothing was.
    """

    origin: str
    spec: Spec
    num_classes: int
    class_names: tuple[str, ...] | None
    tensors: int
    not_loaded: tuple[str, ...]
    changes: dict[str, Any]
    reason: str
    interpolated: str = ""

    def __str__(self) -> str:
        """A sentence or two for a log."""
        taken = ", ".join(f"{name} {value}" for name, value in self.changes.items())
        left = f"{', '.join(self.not_loaded)} not loaded ({self.reason})" if self.reason else ""
        start = f"{self.tensors} tensors from {self.origin}"
        parts = [start, taken and f"with {taken}", self.interpolated, left]
        return f"{self.spec.name}: {'; '.join(part for part in parts if part)}"


def load_weights(
    model: Network,
    path_or_name: str,
    *,
    strict: bool = False,
    ema: bool = True,
    architecture: str | None = None,
) -> Loaded:
    """Puts weights of any origin into a model, which then computes what they were trained for.

    The model takes over what networks of that origin have otherwise: padding, batch norm's epsilon
    and preprocessing, also in its ``spec``. A classifier for another number of classes keeps the
    numbers that it has. The position embedding of a ViT that was made for other images than the
    weights is interpolated. Where anything else does not fit, nothing is changed.

    Args:
        model: to load into.
        path_or_name: a file (safetensors; PyTorch's .pth or .bin; Keras's .h5 or .keras; the
            official .tgz), a folder (TensorFlow checkpoint, Hugging Face repository, workdir of a
            run, weights we wrote), the prefix of a TensorFlow checkpoint, or a published name such
            as ``efficientnetv2-s/imagenet21k-ft1k``.
        strict: refuses weights whose classifier or position embedding does not fit.
        ema: takes the moving averages where there are two.
        architecture: timm's name of the network, e.g. ``tf_efficientnetv2_s``, where it is not told
            by the file or its folder.

    Returns:
        What was loaded, and what was not.

    Raises:
        UsageError: where there is nothing to load, it cannot be read, or does not fit.
    """
    weights = read_weights(path_or_name, model.spec, ema=ema, architecture=architecture)
    return put(weights, model, strict=strict)


def load_model(
    path_or_name: str,
    model: str | None = None,
    *,
    ema: bool = True,
    architecture: str | None = None,
    **arguments: Any,
) -> tuple[Network, Loaded]:
    """The model that weights are for, with their number of classes, in evaluation mode.

    A ViT is made for the images that they are for: for others, ``load_weights`` into one.

    Args:
        path_or_name: as for ``load_weights``.
        model: its name; None takes the one that the weights look like.
        ema: as for ``load_weights``.
        architecture: as for ``load_weights``.
        **arguments: of ``create_model``, such as ``dtype``; none of the spec's fields.

    Raises:
        UsageError: as for ``load_weights``.
    """
    weights = read_weights(path_or_name, model, ema=ema, architecture=architecture)
    arguments = {"rngs": nnx.Rngs(0), **arguments}
    network = build(weights.spec, num_classes=weights.num_classes, **arguments)
    return network, put(weights, network)


def put(weights: Weights, model: Network, *, strict: bool = False) -> Loaded:
    """Puts weights that were read into a model of their shapes; see ``load_weights``."""
    variables = layout.variables(model)
    here = {name for name in variables if name.startswith(CLASSIFIER)}
    num_classes = variables[f"{CLASSIFIER}.bias"].shape[0] if here else 0
    tensors = dict(weights.tensors)
    left: list[str] = []
    reason = ""
    if num_classes != weights.num_classes:
        reason = f"{weights.num_classes} classes there, {num_classes} in the model"
        left = sorted(here | {name for name in tensors if name.startswith(CLASSIFIER)})
        tensors = {name: x for name, x in tensors.items() if name not in left}
    if strict and reason:
        raise UsageError(f"{weights.origin} does not fit: {', '.join(left)} differ ({reason})")
    spec, changes, interpolated = weights.spec, dict(weights.changes), ""
    if POSITIONS in variables and variables[POSITIONS].shape != tensors[POSITIONS].shape:
        old, new = (grid_of(x[POSITIONS].shape) for x in (tensors, variables))
        if strict:
            raise UsageError(
                f"{weights.origin} does not fit: its position embedding is of {old} × {old} "
                f"patches, the model's of {new} × {new}"
            )
        tensors[POSITIONS] = interpolate(tensors[POSITIONS], new)
        interpolated = f"position embedding interpolated from {old} × {old} to {new} × {new}"
        # The model stays one for its own images.
        spec = dataclasses.replace(spec, eval_size=model.spec.eval_size)
        changes.pop("eval_size", None)
    _adopt(model, spec)
    for name, array in tensors.items():
        variable = variables[name]
        current = variable[...]
        variable[...] = jax.device_put(array.astype(current.dtype, copy=False), current.sharding)
    return Loaded(
        origin=weights.origin,
        spec=model.spec,
        num_classes=num_classes,
        class_names=None if reason else weights.class_names,
        tensors=len(tensors),
        not_loaded=tuple(left),
        changes=changes,
        reason=reason,
        interpolated=interpolated,
    )


# What of a module follows which field of the spec.
_FOLLOWS = (
    (Conv, "padding", "padding"),
    (DepthwiseConv, "padding", "padding"),
    (BatchNorm, "epsilon", "bn_epsilon"),
    (nnx.LayerNorm, "epsilon", "norm_epsilon"),
)


def _adopt(model: Network, spec: Spec) -> None:
    """Makes a model compute as a spec of the same shapes says."""
    for _, module in nnx.iter_modules(model):
        for kind, attribute, field in _FOLLOWS:
            if isinstance(module, kind):
                setattr(module, attribute, getattr(spec, field))
    model.spec = spec
