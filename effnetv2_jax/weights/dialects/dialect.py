"""A dialect: a family's names in one library's files, combined with the library's convention."""

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np

from effnetv2_jax.models.family import CLASSIFIER, Family, Names, Spec
from effnetv2_jax.models.registry import FAMILIES
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import layout
from effnetv2_jax.weights.dialects.conventions import CONVENTIONS, Convention
from effnetv2_jax.weights.layout import Tensor

OURS = "effnetv2_jax"
"""The library whose names are ours."""


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of one of our tensors in somebody's file.

    Attributes:
        name: The tensor's name in the file.
        shape: The tensor's shape in the file.
        axes: The order of the axes: ``theirs.transpose(axes)`` is ours.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """Returns their tensor as ours: float32, C-contiguous, in our order of axes."""
        return np.ascontiguousarray(array.transpose(self.axes), np.float32)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Returns our tensor as theirs."""
        return np.ascontiguousarray(array.transpose(np.argsort(self.axes)))


@dataclasses.dataclass(frozen=True)
class Dialect:
    """A library's way of storing the networks of a family.

    Attributes:
        family: The family.
        names: The names of its layers in the library's files.
        convention: The library's names of a layer's parts, and its order of axes.
    """

    family: Family
    names: Names
    convention: Convention

    def prefixes(self, tensors: Mapping[str, object]) -> list[str]:
        """Returns the text before this dialect's names in a file, once for every network in it."""
        before = re.compile(rf"(.*[./])?{re.escape(self.names.anchor)}")
        return [match[1] or "" for name in tensors if (match := before.fullmatch(name))]

    def may_hold(self, spec: Spec, names: Iterable[str]) -> bool:
        """Tells at no cost if tensors of these names may be those of a network.

        It compares which layers there are, except for the classifier, which a network may lack.
        """
        return self.likeness(spec, names) == 1

    def likeness(self, spec: Spec, names: Iterable[str]) -> float:
        """Returns the share of layers, of a network's and a file's, that both have.

        It is 0 if the library has no names for some blocks of the network.
        """
        expected = self.layers(spec)
        if expected is None:
            return 0.0
        layers = set(expected.values())
        found = {
            name if name in layers else name.rpartition(self.convention.separator)[0]
            for name in names
        } | {expected[CLASSIFIER]}
        return len(found & layers) / len(found | layers)

    def layers(self, spec: Spec) -> Mapping[str, str] | None:
        """Returns the library's names of a network's layers by ours; None if it has none.

        Our own files say which network they hold, so there are none for them.
        """
        try:
            return self.names.layers(spec) if self.names.layers else None
        except KeyError:  # a library has no names for some blocks
            return None

    def places(self, spec: Spec, num_classes: int) -> dict[str, Place]:
        """Returns the places of a network's tensors by our names, without any prefix.

        Args:
            spec: The network.
            num_classes: The number of classes; 0 means no classifier.

        Raises:
            UsageError: If the library has no name for a layer of such a network.
        """
        try:
            layers = self.names.layers(spec) if self.names.layers else None
            return {
                name: self._place(name, tensor, layers)
                for name, tensor in layout.tensors(spec, num_classes).items()
            }
        except KeyError as error:
            raise UsageError(
                f"{self.names.library} has no names for the blocks of {spec.name}"
            ) from error

    def _place(self, name: str, tensor: Tensor, layers: Mapping[str, str] | None) -> Place:
        as_ours = tuple(range(len(tensor.shape)))
        if layers is None:
            return Place(name, tensor.shape, as_ours)
        if name in layers:
            return Place(layers[name], tensor.shape, as_ours)
        layer = layers[name.rpartition(".")[0]]
        axes = self.convention.axes.get(tensor.role, as_ours)
        theirs = tuple(tensor.shape[i] for i in np.argsort(axes))
        part = self.convention.parts[tensor.role]
        return Place(f"{layer}{self.convention.separator}{part}", theirs, axes)


DIALECTS = tuple(
    Dialect(family, names, CONVENTIONS[names.convention])
    for family in FAMILIES
    for names in family.names
)
"""All dialects; the first one whose anchor is in a file counts."""


def get_dialect(family: Family, library: str) -> Dialect:
    """Returns the dialect of a family in a library's files.

    Raises:
        UsageError: If no network of the family is known in the library's files.
    """
    for dialect in DIALECTS:
        if dialect.family is family and dialect.names.library == library:
            return dialect
    raise UsageError(f"the layers of no {family.title} have names in {library}")
