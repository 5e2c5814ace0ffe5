"""From somebody's file to a network's weights in our names: whose it is, and whether it fits."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from effnetv2_jax.models import EfficientNetSpec, Spec, VisionTransformerSpec, get_spec
from effnetv2_jax.models.registry import SPECS
from effnetv2_jax.runtime import bars
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import description, published
from effnetv2_jax.weights.containers.files import open_tensors
from effnetv2_jax.weights.containers.tensors import Tensors
from effnetv2_jax.weights.description import Description
from effnetv2_jax.weights.dialects.dialect import OURS, OURS_VIT, Dialect, Place
from effnetv2_jax.weights.dialects.pytorch import EFFICIENTNET_PYTORCH, TIMM, TORCHVISION
from effnetv2_jax.weights.dialects.timm_vit import TIMM_VIT
from effnetv2_jax.weights.layout import CLASSIFIER
from effnetv2_jax.weights.positions import POSITIONS, grid_of

Shape = tuple[int, ...]


def _dialects() -> tuple[Dialect, ...]:
    # With h5py, which a project that only builds models has no use for.
    from effnetv2_jax.weights.dialects.google import GRAPH, OBJECTS
    from effnetv2_jax.weights.dialects.keras_applications import (
        KERAS_NUMBERS,
        KERAS_V1,
        KERAS_V2,
    )

    # V1's anchor first: V2's is a tensor of V1 too.
    keras = (KERAS_V1, KERAS_V2, KERAS_NUMBERS)
    torch = (TIMM, TIMM_VIT, TORCHVISION, EFFICIENTNET_PYTORCH)
    return (OURS, OURS_VIT, *torch, *keras, GRAPH, OBJECTS)


# What a file may say of a network beside its shapes: these fields of the spec are taken over …
ADOPTED: Mapping[type[Spec], tuple[str, ...]] = {
    EfficientNetSpec: ("padding", "bn_epsilon", "preprocessing", "train_size", "eval_size"),
    # Its eval_size shows in the shape of the position embedding.
    VisionTransformerSpec: ("norm_epsilon", "preprocessing"),
}
# … and these have to be the same, as shapes do not show them.
_COMPARED: Mapping[type[Spec], tuple[str, ...]] = {
    EfficientNetSpec: ("groups", "activation"),
    VisionTransformerSpec: ("num_heads",),
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network's weights.

    Attributes:
        spec: of the network that computes what these were trained for.
        num_classes: of the classifier; 0 where there is none.
        tensors: float32 by our names, as ``layout.shapes`` has them.
        class_names: one a class; None where unknown.
        origin: where they come from, for people.
        changes: fields of the spec that the network was said to have otherwise.
    """

    spec: Spec
    num_classes: int
    tensors: Mapping[str, np.ndarray]
    class_names: tuple[str, ...] | None
    origin: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def description(self) -> Description:
        return Description(self.spec, self.num_classes, self.class_names, self.origin)


def read_weights(
    path_or_name: str,
    model: str | Spec | None = None,
    *,
    ema: bool = True,
    architecture: str | None = None,
) -> Weights:
    """Reads somebody's weights.

    Of a ViT they are as they are there, with the ``eval_size`` that their position embedding is
    for, whatever the model's.

    Args:
        path_or_name: as for ``load_weights``.
        model: the network that they must fit, a name or a spec; None takes the one they look like.
        ema: takes the moving averages where there are two.
        architecture: timm's name of the network, where it is not told by the file or its folder.

    Raises:
        UsageError: where there is nothing, it cannot be read, or does not fit.
    """
    path, known = published.resolve(path_or_name)
    spec = get_spec(model) if isinstance(model, str) else model
    if spec is None and known is not None:
        spec = get_spec(known.model)
    with open_tensors(path, ema) as tensors:
        dialect, prefix = _whose(tensors, ema)
        found = _network_of(tensors, dialect, prefix)
        if spec is not None and not isinstance(spec, dialect.network):
            raise UsageError(
                f"{path_or_name!r} does not fit {spec.name}: it is another kind of network; "
                f"{_looks_like(dialect, found)}"
            )
        about = None
        told = architecture or tensors.about.get("architecture")
        if dialect in (OURS, OURS_VIT) or description.KEY in tensors.about:
            about = _description(tensors, dialect)
            spec = spec or _known_as(about.spec)
        asked = spec or _look_alike(dialect, found, told, path_or_name)
        spec = _sized(asked, dialect, found)
        num_classes = _classes(dialect, spec, found)
        places = dialect.places(spec, num_classes)
        if problem := _misfit(places, found):
            raise UsageError(
                f"{path_or_name!r} does not fit {spec.name}: {problem}; "
                f"{_looks_like(dialect, found)}"
            )
        if about and (field := _different(about.spec, asked)):
            raise UsageError(
                f"{path_or_name!r} does not fit {spec.name}: it is for another {about.spec.name}, "
                f"of the same shapes but with other {field}"
            )
        trained = _trained(dialect, spec.name, told, about, path_or_name)
        trained.setdefault("eval_size", spec.eval_size)
        trained |= known.changes if known else {}
        arrays = {
            name: place.to_ours(tensors.read(prefix + place.name))
            for name, place in bars.track(places.items(), "reading weights", len(places))
        }
    changes = {name: x for name, x in trained.items() if getattr(asked, name) != x}
    return Weights(
        spec=dataclasses.replace(asked, **changes),
        num_classes=num_classes,
        tensors=arrays,
        class_names=about.class_names if about else None,
        origin=about.origin if about else f"{path_or_name} ({dialect.name})",
        changes=changes,
    )


def _whose(tensors: Tensors, ema: bool) -> tuple[Dialect, str]:
    """The dialect of a file, and what stands before its names."""
    for dialect in _dialects():
        if prefixes := dialect.prefixes(tensors.shapes):
            # A file may hold a network twice, as it is and averaged.
            return dialect, sorted(prefixes, key=lambda prefix: ("ema" in prefix) != ema)[0]
    names = ", ".join(repr(name) for name in list(tensors.shapes)[:3]) or "none"
    known = ", ".join(dict.fromkeys(dialect.name for dialect in _dialects()))
    raise UsageError(
        f"{str(tensors.path)!r} holds no EfficientNet and no ViT that is known: of its "
        f"{len(tensors.shapes)} tensors ({names} …) none is named as in {known}"
    )


def _network_of(tensors: Tensors, dialect: Dialect, prefix: str) -> dict[str, Shape]:
    """The shapes of what belongs to the network, by name without the prefix."""
    inside = {
        name.removeprefix(prefix): shape
        for name, shape in tensors.shapes.items()
        if name.startswith(prefix)
    }
    # A scalar is a counter, such as num_batches_tracked.
    return {
        name: shape for name, shape in inside.items() if shape and dialect.territory.fullmatch(name)
    }


def _sized(spec: Spec, dialect: Dialect, found: Mapping[str, Shape]) -> Spec:
    """A spec with the image size that a file's position embedding is for, where it has one."""
    place = dialect.places(spec, 0).get(POSITIONS)
    if not isinstance(spec, VisionTransformerSpec) or place is None:
        return spec
    grid = grid_of(found.get(place.name, ()))
    return dataclasses.replace(spec, eval_size=grid * spec.patch_size) if grid else spec


def _classes(dialect: Dialect, spec: Spec, found: Mapping[str, Shape]) -> int:
    bias = dialect.places(spec, 1)[f"{CLASSIFIER}.bias"]
    return found[bias.name][0] if bias.name in found else 0


def _misfit(places: Mapping[str, Place], found: Mapping[str, Shape]) -> str | None:
    """Something in which a file differs from a network, a shape if any; None where it fits."""
    for place in places.values():
        if found.get(place.name, place.shape) != place.shape:
            return (
                f"tensor {place.name} has shape {found[place.name]} there and {place.shape} in the "
                "model"
            )
    for place in places.values():
        if place.name not in found:
            return f"tensor {place.name} of shape {place.shape} is missing"
    known = {place.name for place in places.values()}
    for name, shape in found.items():
        if name not in known:
            return f"tensor {name} of shape {shape} has no place in the model"
    return None


def _fitting(dialect: Dialect, found: Mapping[str, Shape]) -> list[Spec]:
    """The models that a file fits, whatever the size of images."""
    fitting = []
    for spec in SPECS.values():
        if not isinstance(spec, dialect.network):
            continue
        try:
            sized = _sized(spec, dialect, found)
            places = dialect.places(sized, _classes(dialect, spec, found))
        except UsageError:  # a library has no names for some
            continue
        if _misfit(places, found) is None:
            fitting.append(spec)
    return fitting


def _names(specs: list[Spec]) -> str:
    return " or ".join(spec.name for spec in specs)


def _looks_like(dialect: Dialect, found: Mapping[str, Shape]) -> str:
    fitting = _fitting(dialect, found)
    return f"it looks like {_names(fitting)}" if fitting else "it is none of the models here"


def _look_alike(
    dialect: Dialect, found: Mapping[str, Shape], architecture: str | None, path_or_name: str
) -> Spec:
    fitting = _fitting(dialect, found)
    if not fitting:
        raise UsageError(
            f"{path_or_name!r} has names as in {dialect.name}, but is none of the models here: "
            "name a model to see where they differ"
        )
    named = dialect.model_of(architecture) if architecture else None
    if len(fitting) > 1 and named:
        fitting = [spec for spec in fitting if spec.name == named] or fitting
    if len(fitting) > 1:
        raise UsageError(
            f"{path_or_name!r} may be {_names(fitting)}, which differ in what they expect alone: "
            "name the model, or give timm's name of it as architecture"
        )
    return fitting[0]


def _description(tensors: Tensors, dialect: Dialect) -> Description:
    try:
        about = Description.from_json(tensors.about.get(description.KEY, ""))
    except UsageError as error:
        raise UsageError(f"{str(tensors.path)!r}: {error}") from error
    if not isinstance(about.spec, dialect.network):
        raise UsageError(f"{str(tensors.path)!r}: its description is not that of its tensors")
    return about


def _known_as(spec: Spec) -> Spec:
    """The model of that name, or the spec where that is another network."""
    known = SPECS.get(spec.name, spec)
    return spec if _different(spec, known) else known


def _different(spec: Spec, other: Spec) -> str | None:
    """A field in which two networks differ that shapes do not show; None where there is none."""
    compared = _COMPARED[type(spec)]
    fields = (name for name in compared if getattr(spec, name) != getattr(other, name))
    return next(fields, None)


def _trained(
    dialect: Dialect,
    model: str,
    architecture: str | None,
    about: Description | None,
    path_or_name: str,
) -> dict[str, Any]:
    if about is not None:
        return {field: getattr(about.spec, field) for field in ADOPTED[type(about.spec)]}
    try:
        return dict(dialect.trained(model, architecture))
    except UsageError as error:
        raise UsageError(f"{path_or_name!r}: {error}") from error
