"""The record of a family of networks: everything the package has to know of one in one place.

A new family is a file with its module, its frozen specs and a ``Family``, and an entry in
``registry.FAMILIES``. Nothing else in the package asks which family a network belongs to.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import jax
import numpy as np
from flax import nnx

CLASSIFIER = "classifier"
"""The name of the last layer in every network."""


class Spec(Protocol):
    """The fields that the specs of all families have; each is a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str: ...
    @property
    def train_size(self) -> int: ...
    @property
    def eval_size(self) -> int: ...
    @property
    def dropout_rate(self) -> float: ...
    @property
    def survival_prob(self) -> float: ...
    @property
    def preprocessing(self) -> str: ...
    @property
    def num_features(self) -> int: ...


class Network(nnx.Module):
    """The base of the modules of all families.

    Attributes:
        spec: The spec that the module was built from.
    """

    spec: Any

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool | None = None,
        rngs: nnx.Rngs | None = None,
        dropout_rate: float | jax.Array | None = None,
        index: jax.Array | None = None,
    ) -> jax.Array:
        """Classifies images; see ``EfficientNet.__call__`` for the arguments."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Names:
    """The names that one library gives to the layers of a family.

    The same table serves both directions: reading the library's files and writing them.

    Attributes:
        library: The library's name in messages.
        convention: The library's convention for the parts of a layer and the axes of a kernel, a
            name in ``weights.dialects.conventions``.
        anchor: A tensor that every network has in this library's files. Any text before it
            (``module.``, ``efficientnetv2-s/``) stands before all other names too.
        layers: A function from a spec to the layers it has, {our name: the library's name}. A
            tensor with a name of its own, such as a class token, is listed as if it were a layer.
            None if the library's names are ours.
        territory: Matches the names of the tensors that belong to a network. Other tensors in the
            file are ignored.
        trained: A function from our model's name and timm's name of the architecture (or None) to
            the fields of the spec that say how such networks compute. It raises UsageError if the
            two names do not tell.
        our_model: A function from timm's name of the architecture to our model's name, which tells
            networks of equal shapes apart; None for other architectures.
        their_model: A function from a spec to the name of the library's network that computes the
            same; None if there is no such network.
    """

    library: str
    convention: str
    anchor: str
    layers: Callable[[Any], Mapping[str, str]] | None
    territory: re.Pattern[str]
    trained: Callable[[str, str | None], Mapping[str, Any]]
    our_model: Callable[[str], str | None] = lambda architecture: None
    their_model: Callable[[Any], str | None] = lambda spec: None


@dataclasses.dataclass(frozen=True)
class Positions:
    """A position embedding, whose shape depends on the size of the images.

    Attributes:
        tensor: The tensor's name.
        grid: A function from the tensor's shape to the number of patches along a side of the image;
            0 if no square image has that shape.
        eval_size: A function from a spec and a grid to the side of the image in px.
        interpolate: A function from the tensor and a new grid to the tensor for that grid.
    """

    tensor: str
    grid: Callable[[tuple[int, ...]], int]
    eval_size: Callable[[Any, int], int]
    interpolate: Callable[[np.ndarray, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of networks.

    Attributes:
        name: The family's name in the descriptions that are written beside weights.
        title: The family's name in messages.
        spec: The type of its specs.
        module: The type of its modules, which takes a spec, the arguments of ``create_model`` and
            ``rngs``. All but the spec and ``rngs`` have defaults.
        specs: All networks of the family that have a name.
        read_spec: Makes a spec from its fields as JSON holds them.
        as_trained: The fields of a spec that change what given weights compute, and the modules'
            attributes that follow each: {field: ((type of module, attribute), ...)}. Weights bring
            these fields along.
        also_adopted: The other fields that weights bring along.
        compared: The fields that must be equal for weights to fit, although no shape shows them.
        lacks: The arguments of ``create_model`` that the module does not take.
        names: The names of the layers in each library's files. The first one that a file matches
            counts.
        timm_names: A pattern of the beginning of timm's names of its networks, by which they are
            recognised in the names of files.
        positions: The position embedding; None if the family has none.
    """

    name: str
    title: str
    spec: type[Any]
    module: Callable[..., Network]
    specs: Mapping[str, Spec]
    read_spec: Callable[[Mapping[str, Any]], Spec]
    as_trained: Mapping[str, tuple[tuple[type, str], ...]]
    also_adopted: tuple[str, ...]
    compared: tuple[str, ...]
    names: tuple[Names, ...]
    timm_names: str
    lacks: frozenset[str] = frozenset()
    positions: Positions | None = None

    @property
    def adopted(self) -> tuple[str, ...]:
        """All fields that weights bring along."""
        return (*self.as_trained, *self.also_adopted)
