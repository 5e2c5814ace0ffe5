"""Weights into a model."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

from effnetv2_jax.models.family import CLASSIFIER, Network, Spec
from effnetv2_jax.models.registry import build, family_of
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import layout
from effnetv2_jax.weights.read import Weights, read_weights

_RGB = 3


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The record of what was loaded.

    Attributes:
        origin: The weights' origin.
        spec: The model's spec, with what it took over from the weights.
        num_classes: The model's number of classes; 0 means no classifier.
        class_names: The names of the weights' classes. None if they are unknown, or if the
            classifier was not loaded.
        tensors: The number of tensors that were loaded.
        not_loaded: The names of the tensors that were left out: the model's and the weights' by our
            names, and those of the file that are no part of the network by its own.
        changes: The fields of the spec that the model took over and that it had otherwise.
        reason: The reason why tensors were left out; empty if none was.
        interpolated: The tensor that was interpolated for another image size; empty if none was.
        of_training: The file's names of the tensors that only a training needs, as in ``Weights``.
        adapted: The kernel that was adapted to other channels of images; empty if none was.
        assumed: The source of the spec's fields that weights bring along.
        exif_orientation: True if the network was trained on images turned as their EXIF says.
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
    of_training: tuple[str, ...] = ()
    adapted: str = ""
    assumed: str = ""
    exif_orientation: bool = False

    def __str__(self) -> str:
        """Returns a sentence or two for a log."""
        taken = ", ".join(f"{name} {value}" for name, value in self.changes.items())
        left = f"{_listed(self.not_loaded)} not loaded ({self.reason})" if self.reason else ""
        start = f"{self.tensors} tensors from {self.origin}"
        images = f"images as {self.spec.preprocessing} takes them, {self.assumed}"
        parts = [start, taken and f"with {taken}", self.interpolated, self.adapted, left]
        parts.append(self.assumed and images)
        return f"{self.spec.name}: {'; '.join(part for part in parts if part)}"


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


def load_weights(
    model: Network,
    path_or_name: str,
    *,
    strict: bool = False,
    ema: bool = True,
    architecture: str | None = None,
    preprocessing: str | None = None,
    classifier: str | None = None,
) -> Loaded:
    """Puts weights of any origin into a model, which then computes what they were trained for.

    The model takes over the weights' padding, epsilon of batch or layer norm, and preprocessing,
    also in its ``spec``. If the numbers of classes differ, the model keeps its own classifier. If
    the image sizes differ, a ViT's position embedding is interpolated. If the model's images have
    other than three channels, the first kernel is adapted as ``adapt_channels`` says. If anything
    else does not fit, the model is not changed.

    >>> load_weights(model, "efficientnetv2-s/imagenet21k-ft1k")  # doctest: +SKIP

    Args:
        model: The model to load into.
        path_or_name: The weights. A file: safetensors, PyTorch's .pth or .bin, Keras's .h5 or
            .keras, or an official .tgz. A folder: a TensorFlow checkpoint, a Hugging Face
            repository, the workdir of a run, or weights that ``save_weights`` wrote. The prefix of
            a TensorFlow checkpoint. A name in ``list_pretrained()`` such as
            ``efficientnetv2-s/imagenet21k-ft1k``. Or an address, ``https://…`` or
            ``hf://OWNER/REPOSITORY``. What is not on this machine is fetched.
        strict: Refuses weights whose classifier, position embedding or first kernel does not fit,
            and files with tensors that are no part of the network.
        ema: Takes the moving averages if the weights have both.
        architecture: timm's name of the network, for example ``tf_efficientnetv2_s.in1k``. None
            takes what the file, its ``config.json`` or its name say.
        preprocessing: The preprocessing that the weights expect, as for ``get_preprocessing``. None
            takes that of their origin.
        classifier: The file's name of the layer that classifies the network's features, if the
            network is part of another one there, for example ``head`` or ``dense_1``.

    Returns:
        The record of what was loaded and what was not.

    Raises:
        UsageError: If there are no weights, or they cannot be read, or do not fit, or nothing says
            how they compute.
    """
    weights = read_weights(
        path_or_name,
        model.spec,
        ema=ema,
        architecture=architecture,
        preprocessing=preprocessing,
        classifier=classifier,
    )
    return put(weights, model, strict=strict)


def load_model(
    path_or_name: str,
    model: str | None = None,
    *,
    ema: bool = True,
    architecture: str | None = None,
    preprocessing: str | None = None,
    classifier: str | None = None,
    **arguments: Any,
) -> tuple[Network, Loaded]:
    """Builds the model that weights are for, with their number of classes, in evaluation mode.

    The model has the weights' number of channels of images, and a ViT their image size. To use
    others, build it with ``create_model`` and call ``load_weights``.

    >>> model, loaded = load_model("efficientnetv2-s/imagenet21k-ft1k")  # doctest: +SKIP

    Args:
        path_or_name: The weights, as for ``load_weights``.
        model: The model's name; None means the model that the weights look like.
        ema: Takes the moving averages if the weights have both.
        architecture, preprocessing, classifier: As for ``load_weights``.
        **arguments: Arguments of ``create_model`` such as ``dtype``, but no fields of the spec.

    Returns:
        The model, and the record of what was loaded.

    Raises:
        UsageError: As ``load_weights``.
    """
    weights = read_weights(
        path_or_name,
        model,
        ema=ema,
        architecture=architecture,
        preprocessing=preprocessing,
        classifier=classifier,
    )
    arguments = {"rngs": nnx.Rngs(0), **arguments}
    network = build(weights.spec, num_classes=weights.num_classes, **arguments)
    return network, put(weights, network)


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Makes a kernel that sees RGB images see images of other channels, as timm does.

    One channel gets the sum over red, green and blue, so that a grey image gives what it gave as
    RGB. More channels repeat them, scaled so that equal channels give what they gave.

    Args:
        kernel: [height, width, 3, out_channels].
        channels: The number of channels of the images.

    Returns:
        float32 [height, width, channels, out_channels].
    """
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    repeated = np.tile(kernel, (1, 1, -(-channels // _RGB), 1))[:, :, :channels]
    return repeated * np.float32(_RGB / channels)


def put(weights: Weights, model: Network, *, strict: bool = False) -> Loaded:
    """Puts weights that ``read_weights`` read for ``model.spec`` into the model.

    The arguments, the result and the errors are those of ``load_weights``.
    """
    variables = layout.variables(model)
    here = {name for name in variables if name.startswith(CLASSIFIER)}
    num_classes = variables[f"{CLASSIFIER}.bias"].shape[0] if here else 0
    tensors = dict(weights.tensors)
    left: list[str] = []
    reasons: list[str] = []
    if num_classes != weights.num_classes:
        reasons = [f"{weights.num_classes} classes there, {num_classes} in the model"]
        left = sorted(here | {name for name in tensors if name.startswith(CLASSIFIER)})
        tensors = {name: x for name, x in tensors.items() if name not in left}
    same_classes = not reasons
    if weights.beside:
        left += weights.beside
        reasons.append(weights.why_beside)
    reason = "; ".join(reasons)
    if strict and reason:
        raise UsageError(f"{weights.origin} does not fit: {_listed(tuple(left))} differ ({reason})")
    spec, changes, interpolated, adapted = weights.spec, dict(weights.changes), "", ""
    family = family_of(spec)
    if positions := family.positions:
        name = positions.tensor
        old, new = (positions.grid(x[name].shape) for x in (tensors, variables))
        if old != new and strict:
            raise UsageError(
                f"{weights.origin} does not fit: its position embedding is of {old} × {old} "
                f"patches, the model's of {new} × {new}"
            )
        if old != new:
            tensors[name] = positions.interpolate(tensors[name], new)
            interpolated = f"position embedding interpolated from {old} × {old} to {new} × {new}"
            # The model stays one for its own images.
            spec = dataclasses.replace(spec, eval_size=model.spec.eval_size)
            changes.pop("eval_size", None)
    if spec.in_channels != model.spec.in_channels:
        channels = model.spec.in_channels
        if strict or spec.in_channels != _RGB:
            raise UsageError(
                f"{weights.origin} does not fit: it is for images of {spec.in_channels} channels, "
                f"the model for {channels}"
                + ("" if strict else f"; only weights for {_RGB} channels can be adapted")
            )
        tensors[family.input_kernel] = adapt_channels(tensors[family.input_kernel], channels)
        adapted = f"{family.input_kernel} adapted from {_RGB} to {channels} channels"
        spec = dataclasses.replace(spec, in_channels=channels)
        changes.pop("in_channels")
    # The model computes from now on as the spec says.
    for _, module in nnx.iter_modules(model):
        for field, followers in family.as_trained.items():
            for kind, attribute in followers:
                if isinstance(module, kind):
                    setattr(module, attribute, getattr(spec, field))
    model.spec = spec
    for name, array in tensors.items():
        variable = variables[name]
        current = variable[...]
        variable[...] = jax.device_put(array.astype(current.dtype, copy=False), current.sharding)
    return Loaded(
        origin=weights.origin,
        spec=model.spec,
        num_classes=num_classes,
        class_names=weights.class_names if same_classes else None,
        tensors=len(tensors),
        not_loaded=tuple(left),
        changes=changes,
        reason=reason,
        interpolated=interpolated,
        of_training=weights.of_training,
        adapted=adapted,
        assumed=weights.assumed,
        exif_orientation=weights.exif_orientation,
    )
