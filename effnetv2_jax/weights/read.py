"""From somebody's file to a network's weights in our names: the dialect, the network, the fit."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from effnetv2_jax.models.family import CLASSIFIER, Spec
from effnetv2_jax.models.registry import FAMILIES, SPECS, family_of, get_spec
from effnetv2_jax.preprocessing import get_preprocessing, name_preprocessing
from effnetv2_jax.runtime import bars
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import description, published, timm
from effnetv2_jax.weights.containers.files import open_tensors
from effnetv2_jax.weights.containers.tensors import Tensors
from effnetv2_jax.weights.description import Description
from effnetv2_jax.weights.dialects.dialect import DIALECTS, OURS, Dialect, Place

Shape = tuple[int, ...]

# The tensors of a training that are no part of a network: counters, the states of random numbers,
# and what optimisers keep.
_OF_TRAINING = re.compile(
    r"(.*[./])?(num_batches_tracked|n_averaged|global_step|save_counter"
    r"|seed_generator/.*|seed_generator_state|optimizer(_weights|_states?)?[./].*)"
)
# The argument and the flags with which a user tells timm's name of a network.
_ARCHITECTURE = "architecture (--architecture, in training --config.init_architecture)"


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a network.

    Attributes:
        spec: The network that computes what the weights were trained for.
        num_classes: The number of classes; 0 means no classifier.
        tensors: The float32 tensors by our names, as ``layout.tensors`` lists them.
        class_names: The names of the classes; None if unknown.
        origin: The weights' origin, for people.
        changes: The fields of the spec that the weights brought along.
        beside: The names of the file's tensors that are no part of the network, such as another
            classifier. What a training keeps is not among them.
        why_beside: The reason why tensors are in ``beside``; empty if none is.
        of_training: The names of the file's tensors that a training keeps: counters, an optimiser's
            slots, and the raw weights if ``tensors`` are their moving averages, or the averages.
        assumed: The source of what is computed with them.
        exif_orientation: True if the network was trained on images turned as their EXIF says.
    """

    spec: Spec
    num_classes: int
    tensors: Mapping[str, np.ndarray]
    class_names: tuple[str, ...] | None
    origin: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    beside: tuple[str, ...] = ()
    why_beside: str = ""
    of_training: tuple[str, ...] = ()
    assumed: str = ""
    exif_orientation: bool = False

    @property
    def description(self) -> Description:
        """The description that is written beside the weights."""
        return Description(
            self.spec, self.num_classes, self.class_names, self.origin, self.exif_orientation
        )


def read_weights(
    path_or_name: str,
    model: str | Spec | None = None,
    *,
    ema: bool = True,
    architecture: str | None = None,
    preprocessing: str | None = None,
    classifier: str | None = None,
) -> Weights:
    """Reads somebody's weights.

    Weights keep the ``in_channels`` of their images, and a ViT's the ``eval_size`` that their
    position embedding is for, even if the model has others.

    Args:
        path_or_name: The weights, as for ``load_weights``.
        model: The network that they must fit, a name or a spec. None means the network that they
            look like.
        ema: Takes the moving averages if the file has both.
        architecture: timm's name of the network, for example ``tf_efficientnetv2_s.in1k``. None
            takes what the file, its ``config.json`` or their names say (``timm.ask``).
        preprocessing: The preprocessing that they expect, as for ``get_preprocessing``. None takes
            that of their origin.
        classifier: The file's name of the layer that classifies the network's features, if the
            network is part of another one there, for example ``head`` or ``dense_1``.

    Raises:
        UsageError: If there are no weights, or they cannot be read, or do not fit, or nothing says
            how they compute.
    """
    if preprocessing is not None:
        get_preprocessing(preprocessing)
    path, known = published.resolve(path_or_name)
    spec = get_spec(model) if isinstance(model, str) else model
    if spec is None and known is not None:
        spec = get_spec(known.model)
    with open_tensors(path, ema) as tensors:
        dialect, prefix = _dialect_of(tensors, ema)
        found = _network_in(tensors, dialect, prefix)
        sources = {name: prefix + name for name in found}
        about = None
        if dialect.names.library == OURS or description.KEY in tensors.about:
            about = _description(tensors, dialect)

        def misfit(reason: str) -> UsageError:
            assert spec is not None
            fitting = " or ".join(x.name for x in _fitting(dialect, found, about))
            looks = (
                f"it looks like {fitting}: name that model (--model, or --config.model.name in "
                "training)"
                if fitting
                else f"it is none of the models here, {_nearest(dialect, found, told.architecture)}"
            )
            return UsageError(f"{path_or_name!r} does not fit {spec.name}: {reason}; {looks}")

        told = _told(tensors, dialect, found, architecture) if about is None else timm.Told()
        if spec is not None and family_of(spec) is not dialect.family:
            raise misfit("it is another kind of network")
        if spec is not None and dialect.names.layers and dialect.layers(spec) is None:
            raise misfit(f"{dialect.names.library} has no names for its blocks")
        if spec is None and about is not None:
            # The model of this name, unless the description's network only has its name.
            known_as = SPECS.get(about.spec.name, about.spec)
            chosen = {field: getattr(about.spec, field) for field in dialect.family.chosen}
            known_as = dataclasses.replace(known_as, **chosen)
            spec = about.spec if _different(about.spec, known_as) else known_as
        elif spec is None:
            spec = _look_alike(dialect, found, told.architecture, path_or_name)
        asked, spec = spec, _sized(spec, dialect, found)
        if classifier is not None:
            for ours, theirs in _classifier(dialect, spec, tensors, classifier).items():
                found[ours], sources[ours] = tensors.shapes[theirs], theirs
        num_classes = _classes(dialect, spec, found)
        places = dialect.places(spec, num_classes)
        if problem := _difference(places, found):
            raise misfit(problem)
        if about and (field := _different(about.spec, asked)):
            raise UsageError(
                f"{path_or_name!r} does not fit {spec.name}: it is for another {about.spec.name}, "
                f"of the same shapes but with other {field}"
            )
        normalizing: set[str] = set()
        if about is not None:
            trained = {field: getattr(about.spec, field) for field in dialect.family.adopted}
            assumed = "as their description says"
        else:
            try:
                trained, assumed = _trained(
                    dialect, spec, told, preprocessing, named=model is not None or known is not None
                )
            except UsageError as error:
                raise UsageError(f"{path_or_name!r}: {error}") from error
            own, normalizing = _normalization(tensors, dialect, spec, prefix)
            if own is not None:
                trained["preprocessing"] = own
                assumed = "as the file's normalization layer says"
        trained.setdefault("eval_size", spec.eval_size)
        trained["in_channels"] = spec.in_channels
        if known and known.changes:
            trained |= known.changes
            assumed = "as it was published"
        if preprocessing is not None:
            trained["preprocessing"] = preprocessing
            assumed = "as you say"
        arrays = {
            name: place.to_ours(tensors.read(sources[place.name]))
            for name, place in bars.track(places.items(), "reading weights", len(places))
        }
        taken = {sources[place.name] for place in places.values()} | normalizing
        beside, of_training = _others(tensors, dialect, taken)
        why_beside = _why_beside(dialect, spec, tensors, beside) if beside else ""
    changes = {name: x for name, x in trained.items() if getattr(asked, name) != x}
    return Weights(
        spec=dataclasses.replace(asked, **changes),
        num_classes=num_classes,
        tensors=arrays,
        class_names=about.class_names if about else None,
        origin=about.origin if about else f"{path_or_name} ({dialect.names.library})",
        changes=changes,
        beside=beside,
        why_beside=why_beside,
        of_training=of_training,
        assumed=assumed,
        exif_orientation=about.exif_orientation if about else False,
    )


def _told(
    tensors: Tensors, dialect: Dialect, found: Mapping[str, Shape], architecture: str | None
) -> timm.Told:
    """Returns which network of timm a file holds, if it has timm's names of tensors."""
    if dialect.names.library != "timm":
        return timm.Told()
    try:
        told = timm.ask(tensors.about, architecture)
    except UsageError as error:
        raise UsageError(f"{str(tensors.path)!r}: {error}") from error
    if told.architecture is None:
        return told
    spec = dialect.family.specs.get(dialect.names.our_model(told.architecture) or "")
    if told.by_name:
        # The name may be of the network that these weights were taught by, or of a whole project.
        return told if spec and _fits(spec, dialect, found) else timm.Told()
    if spec is None:
        raise UsageError(
            f"{str(tensors.path)!r}: timm's {told.architecture} is no {dialect.family.title}, as "
            "the tensors' names are of one"
        )
    return told


def _trained(
    dialect: Dialect, spec: Spec, told: timm.Told, preprocessing: str | None, named: bool
) -> tuple[dict[str, Any], str]:
    """Returns the fields of a spec that weights without a description bring, and their source.

    Args:
        dialect: The weights' dialect.
        spec: The network.
        told: timm's network, if it is known.
        preprocessing: The user's answer to which images it expects; None if there is none.
        named: True if the user named the model, whose images are then taken if nothing else says.

    Raises:
        UsageError: If nothing says how the network computes, or which images it expects.
    """
    names = dialect.names
    if names.library != "timm":
        return dict(names.trained(spec.name, None)), f"as in {names.library}"
    known = [name for name in timm.networks() if names.our_model(name) == spec.name]
    give = f"give timm's name of it as {_ARCHITECTURE}"
    give += f", such as {' or '.join(known)}" if known else ""
    try:
        trained = dict(names.trained(spec.name, told.architecture))
    except UsageError as error:
        raise UsageError(f"{error}: {give}") from error
    if told.architecture and told.images:
        return trained | told.images.fields(told.architecture), f"as {told.by}"
    if told.architecture and preprocessing is None:
        tags = ", ".join(f"{told.architecture}.{x}" for x in timm.networks()[told.architecture])
        raise UsageError(
            f"timm has several networks {told.architecture}, which expect different images: give "
            f"its full name as {_ARCHITECTURE}, one of {tags}, or the images as preprocessing "
            "(--preprocessing)"
        )
    if not (told.architecture or preprocessing or named or "preprocessing" in trained):
        raise UsageError(
            f"nothing says which images it expects: {give}, or the images as preprocessing "
            "(--preprocessing)"
        )
    return trained, f"as the model {spec.name} has it"


def _dialect_of(tensors: Tensors, ema: bool) -> tuple[Dialect, str]:
    """Returns the dialect of a file, and the text before its names."""
    for dialect in DIALECTS:
        if prefixes := dialect.prefixes(tensors.shapes):
            # A file may hold a network twice: raw and averaged.
            return dialect, sorted(prefixes, key=lambda prefix: ("ema" in prefix) != ema)[0]
    names = ", ".join(repr(name) for name in list(tensors.shapes)[:3]) or "none"
    libraries = ", ".join(dict.fromkeys(dialect.names.library for dialect in DIALECTS))
    families = " and ".join(f"no {family.title}" for family in FAMILIES)
    raise UsageError(
        f"{str(tensors.path)!r} holds {families} that is known: of its {len(tensors.shapes)} "
        f"tensors ({names} …) none is named as in {libraries}"
    )


def _network_in(tensors: Tensors, dialect: Dialect, prefix: str) -> dict[str, Shape]:
    """Returns the shapes of the network's tensors by name, without the prefix."""
    found = {}
    for name, shape in tensors.shapes.items():
        inside = name.removeprefix(prefix)
        counts = _OF_TRAINING.fullmatch(inside)
        if name.startswith(prefix) and not counts and dialect.names.territory.fullmatch(inside):
            found[inside] = shape
    return found


# Of the networks that Keras published, the variance of the layer is what others call the standard
# deviation, and another layer divides by its square root again.
_PUBLISHED_BY_KERAS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _normalization(
    tensors: Tensors, dialect: Dialect, spec: Spec, prefix: str
) -> tuple[str | None, set[str]]:
    """Returns the preprocessing that the file itself holds, if any, and the tensors that say it."""
    patterns = dialect.names.normalization(spec) or ()
    names = [
        name
        for pattern in patterns
        for name in tensors.shapes
        if re.fullmatch(re.escape(prefix) + pattern, name)
    ]
    if not patterns or len(names) != len(patterns):
        return None, set()
    mean, variance = (tensors.read(name).astype(np.float64).ravel() for name in names[:2])
    if not len(mean) == len(variance) == 3:
        raise UsageError(f"{str(tensors.path)!r} is a network for {len(mean)} channels, not for 3")
    if np.allclose((mean, variance), _PUBLISHED_BY_KERAS, atol=1e-4):
        return None, set(names)
    # Keras divides by 1e-7 at the least.
    std = np.maximum(np.sqrt(np.maximum(variance, 0)), 1e-7)
    numbers = {"mean": tuple((mean * 255).tolist()), "std": tuple((std * 255).tolist())}
    return name_preprocessing(("v1",), numbers), set(names)


def _others(
    tensors: Tensors, dialect: Dialect, taken: set[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of all other tensors: those beside the network, and a training's."""
    copies = dialect.prefixes(tensors.shapes)
    if len({"ema" in prefix for prefix in copies}) < len(copies):
        copies = []  # they are not the raw and the averaged weights of one network
    beside: list[str] = []
    of_training: list[str] = []
    for name in sorted(tensors.shapes.keys() - taken):
        copied = any(
            name.startswith(prefix) and dialect.names.territory.fullmatch(name[len(prefix) :])
            for prefix in copies
        )
        (of_training if copied or _OF_TRAINING.fullmatch(name) else beside).append(name)
    return tuple(beside), tuple(of_training)


def _layer(dialect: Dialect, spec: Spec, layer: str, num_classes: int) -> dict[str, Place]:
    """Returns the places of a classifier in a layer's tensors, by the names of those."""
    places = dialect.places(spec, num_classes)
    separator = dialect.convention.separator
    found = (places[f"{CLASSIFIER}.{part}"] for part in ("kernel", "bias"))
    return {f"{layer}{separator}{x.name.rpartition(separator)[2]}": x for x in found}


def _classifier(dialect: Dialect, spec: Spec, tensors: Tensors, layer: str) -> dict[str, str]:
    """Returns the names of a layer's tensors by those that a classifier has in the network."""
    kernel, bias = names = list(_layer(dialect, spec, layer, 1))
    if missing := [name for name in names if name not in tensors.shapes]:
        raise UsageError(f"{str(tensors.path)!r} has no classifier {layer!r}: no {missing[0]}")
    if not _classifies(dialect, spec, tensors, layer):
        raise UsageError(
            f"{layer!r} in {str(tensors.path)!r} does not classify the features of {spec.name}: "
            f"{kernel} has shape {tensors.shapes[kernel]}, {bias} {tensors.shapes[bias]}"
        )
    return {place.name: name for name, place in _layer(dialect, spec, layer, 1).items()}


def _classifies(dialect: Dialect, spec: Spec, tensors: Tensors, layer: str) -> bool:
    """Returns True if a layer takes the network's features to classes."""
    shapes = [tensors.shapes.get(name, ()) for name in _layer(dialect, spec, layer, 1)]
    if len(shapes[1]) != 1:
        return False
    expected = _layer(dialect, spec, layer, shapes[1][0]).values()
    return shapes == [place.shape for place in expected]


def _why_beside(dialect: Dialect, spec: Spec, tensors: Tensors, beside: tuple[str, ...]) -> str:
    """Returns a sentence about tensors beside the network, with a classifier among them if any."""
    layers = dict.fromkeys(name.rpartition(dialect.convention.separator)[0] for name in beside)
    fitting = [layer for layer in layers if _classifies(dialect, spec, tensors, layer)]
    options = " or ".join(f"classifier={layer!r}" for layer in fitting[:3])
    hint = f", give {options} if that layer classifies the network's features" if fitting else ""
    return f"no part of the network in the file{hint}"


def _sized(spec: Spec, dialect: Dialect, found: Mapping[str, Shape]) -> Spec:
    """Returns the spec for a file's images: their channels, and a position embedding's size."""
    places = dialect.places(spec, 0)
    sizes = {}
    kernel = places[dialect.family.input_kernel]
    shape = found.get(kernel.name, ())
    if len(shape) == len(kernel.shape):
        # Only the order of the axes is asked for: this array takes no memory.
        sizes["in_channels"] = kernel.to_ours(np.broadcast_to(np.float32(0), shape)).shape[2]
    if positions := dialect.family.positions:
        grid = positions.grid(found.get(places[positions.tensor].name, ()))
        sizes |= {"eval_size": positions.eval_size(spec, grid)} if grid else {}
    return dataclasses.replace(spec, **sizes)


def _classes(dialect: Dialect, spec: Spec, found: Mapping[str, Shape]) -> int:
    bias = dialect.places(spec, 1)[f"{CLASSIFIER}.bias"]
    return found[bias.name][0] if bias.name in found else 0


def _difference(places: Mapping[str, Place], found: Mapping[str, Shape]) -> str | None:
    """Returns a difference between a file and a network, a shape if any; None if it fits."""
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
    extra = (name for name in found if name not in known)
    return next((f"tensor {x} of shape {found[x]} has no place in the model" for x in extra), None)


def _fitting(
    dialect: Dialect, found: Mapping[str, Shape], about: Description | None = None
) -> list[Spec]:
    """Returns the models that a file fits, for images of any size.

    Tracing every model would take many seconds. So a description's word is taken for the only
    candidate, and otherwise models with other layers are ruled out first.
    """
    if about is not None:
        candidates = [SPECS[about.spec.name]] if about.spec.name in SPECS else []
    else:
        candidates = [
            spec
            for spec in SPECS.values()
            if family_of(spec) is dialect.family and dialect.may_hold(spec, found)
        ]
    return [spec for spec in candidates if _fits(spec, dialect, found)]


def _fits(spec: Spec, dialect: Dialect, found: Mapping[str, Shape]) -> bool:
    sized = _sized(spec, dialect, found)
    places = dialect.places(sized, _classes(dialect, sized, found))
    return _difference(places, found) is None


def _nearest(dialect: Dialect, found: Mapping[str, Shape], told: str | None) -> str:
    """Returns the most similar model and a difference from it, for messages."""
    like = {spec: dialect.likeness(spec, found) for spec in dialect.family.specs.values()}
    spec = _sized(max(like, key=lambda spec: like[spec]), dialect, found)
    difference = _difference(dialect.places(spec, _classes(dialect, spec, found)), found)
    called = f"it is called {told!r}, and " if told else ""
    return f"{called}the nearest is {spec.name}, but {difference}"


def _look_alike(
    dialect: Dialect, found: Mapping[str, Shape], architecture: str | None, path_or_name: str
) -> Spec:
    fitting = _fitting(dialect, found)
    if not fitting:
        raise UsageError(
            f"{path_or_name!r} has names as in {dialect.names.library}, but is none of the models "
            f"here: {_nearest(dialect, found, architecture)}"
        )
    named = dialect.names.our_model(architecture) if architecture else None
    if len(fitting) > 1 and named:
        fitting = [spec for spec in fitting if spec.name == named] or fitting
    if len(fitting) > 1:
        raise UsageError(
            f"{path_or_name!r} may be {' or '.join(spec.name for spec in fitting)}, which differ "
            "only in what they expect: name the model, or give timm's name of it as architecture"
        )
    return fitting[0]


def _description(tensors: Tensors, dialect: Dialect) -> Description:
    try:
        about = Description.from_json(tensors.about.get(description.KEY, ""))
    except UsageError as error:
        raise UsageError(f"{str(tensors.path)!r}: {error}") from error
    if family_of(about.spec) is not dialect.family:
        raise UsageError(
            f"{str(tensors.path)!r}: its description is of {family_of(about.spec).title}s, its "
            f"tensors are of {dialect.family.title}s"
        )
    return about


def _different(spec: Spec, other: Spec) -> str | None:
    """Returns a field that shapes do not show and in which two networks differ, or None."""
    compared = family_of(spec).compared
    return next((x for x in compared if getattr(spec, x) != getattr(other, x)), None)
