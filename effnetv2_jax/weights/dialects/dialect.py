"""How a library names and lays out the tensors of a kind of network, as tables.

A table gives the name of each of our layers (``layout.layers``) in the other library, and a dialect
says what its parts are called and in which order a kernel's axes lie. It serves both directions:
reading their files and writing them.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from effnetv2_jax.models import EfficientNetSpec, Spec, VisionTransformerSpec
from effnetv2_jax.models.efficientnet_specs import EFFICIENTNET_SPECS, BlockSpec, Op
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import layout
from effnetv2_jax.weights.layout import CLASSIFIER, Kind, Layer
from effnetv2_jax.weights.positions import POSITIONS

# Our kernels' axes in those of theirs: theirs.transpose(axes) is ours.
Axes = Mapping[Kind, tuple[int, ...]]
# Of (kind of layer) → our part of it → theirs.
Leaves = Mapping[Kind, Mapping[str, str]]

OUR_AXES: Axes = {
    "conv": (0, 1, 2, 3),
    "depthwise": (0, 1, 2, 3),
    "dense": (0, 1),
}
"""[height, width, in, out], [height, width, 1, channels], [in, out]."""

# Of (block's op, whether it expands) → our layer within the block → theirs.
BlockTable = Mapping[tuple[Op, bool], Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one of our tensors is in somebody's file.

    Attributes:
        name: there.
        shape: there.
        axes: ``theirs.transpose(axes)`` is ours.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """Their tensor as ours: float32 in our layout, C-contiguous."""
        return np.ascontiguousarray(array.transpose(self.axes), np.float32)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Our tensor as theirs."""
        return np.ascontiguousarray(array.transpose(np.argsort(self.axes)))


TENSORFLOW = {"padding": "same", "bn_epsilon": 1e-3}
"""How networks compute that were trained in TensorFlow."""


def as_published(model: str, architecture: str | None) -> dict[str, Any]:
    """``Dialect.trained`` of libraries whose networks are those of the papers."""
    del architecture
    spec = EFFICIENTNET_SPECS.get(model)
    return TENSORFLOW | ({"preprocessing": spec.preprocessing} if spec else {})


@dataclasses.dataclass(frozen=True)
class Dialect:
    """One library's names of one kind of network.

    Attributes:
        name: of the library, for people.
        anchor: a tensor that all of its networks have. What stands before it in a file
            (``module.``, ``efficientnetv2-s/``) stands before all the others too.
        layer_names: of (spec) → our layer's name → theirs; empty where only its parts have one.
        leaves: of (kind of layer) → our part of it → theirs.
        axes: of kernels.
        separator: between a layer's name and its part.
        territory: matches the names of what belongs to a network; others are not looked at.
        trained: of (name of the model, timm's name of the architecture or None) → the fields of the
            spec that say how such networks compute; UsageError where that is unknown.
        network: the kind, as the type of its specs.
        model_of: of (timm's name of the architecture) → our model's name, where that tells more
            than shapes do; None where it does not.
    """

    name: str
    anchor: str
    layer_names: Callable[[Any], Mapping[str, str]]
    leaves: Leaves
    axes: Axes
    separator: str
    territory: re.Pattern[str]
    trained: Callable[[str, str | None], Mapping[str, Any]]
    network: type[Spec] = EfficientNetSpec
    model_of: Callable[[str], str | None] = lambda architecture: None

    def prefixes(self, names: Mapping[str, object]) -> list[str]:
        """What stands before this dialect's names in a file: once for every network in it."""
        before = re.compile(rf"(.*[./])?{re.escape(self.anchor)}")
        return [match[1] or "" for name in names if (match := before.fullmatch(name))]

    def places(self, spec: Spec, num_classes: int) -> dict[str, Place]:
        """Where the tensors of a network are, by our names, without what stands before.

        Args:
            spec: of the network.
            num_classes: of the classifier; 0 for none.

        Raises:
            UsageError: where the library has no name for a layer of such a network.
        """
        try:
            names = self.layer_names(spec)
            return {
                f"{layer.name}.{leaf}": self._place(layer, leaf, names[layer.name])
                for layer in layout.layers(spec, num_classes)
                for leaf in layer.shapes
            }
        except KeyError as error:
            raise UsageError(
                f"{self.name} has no names for the blocks of {spec.name} ({error.args[0]!r})"
            ) from error

    def _place(self, layer: Layer, leaf: str, name: str) -> Place:
        shape = layer.shapes[leaf]
        axes = self.axes[layer.kind] if leaf == "kernel" else tuple(range(len(shape)))
        theirs = tuple(shape[i] for i in np.argsort(axes))
        parts = filter(None, (name, self.leaves[layer.kind][leaf]))
        return Place(self.separator.join(parts), theirs, axes)


def by_table(
    outside: Mapping[str, str], prefix: str, blocks: BlockTable
) -> Callable[[EfficientNetSpec], Mapping[str, str]]:
    """Names of layers from tables, in which fields in braces are filled in.

    Args:
        outside: our name → theirs, of stem, head and classifier; ``{last}`` is the number of groups
            plus one.
        prefix: of a block: ``{number}`` counts blocks, ``{group}`` and ``{repeat}`` groups and the
            blocks within, from 0; ``{stage}`` is the group from 1, ``{letter}`` the block within,
            from a.
        blocks: the layers of a block.
    """

    def layer_names(spec: EfficientNetSpec) -> Mapping[str, str]:
        names = {ours: theirs.format(last=len(spec.groups) + 1) for ours, theirs in outside.items()}
        for number, block in enumerate(spec.blocks):
            before = _fill(prefix, number, block)
            for ours, theirs in blocks[block.op, block.expand_ratio != 1].items():
                names[f"blocks.{number}.{ours}"] = before + theirs
        return names

    return layer_names


def _fill(prefix: str, number: int, block: BlockSpec) -> str:
    return prefix.format(
        number=number,
        group=block.group,
        repeat=block.repeat,
        stage=block.group + 1,
        letter=chr(ord("a") + block.repeat),
    )


def our_names(spec: Spec) -> Mapping[str, str]:
    return {layer.name: layer.name for layer in layout.layers(spec, num_classes=1)}


_SAME_LEAVES = {name: name for name in ("kernel", "bias", "scale", "mean", "var")}

OURS = Dialect(
    name="effnetv2_jax",
    anchor="stem.conv.kernel",
    layer_names=our_names,
    leaves=dict.fromkeys(("conv", "depthwise", "norm", "dense"), _SAME_LEAVES),
    axes=OUR_AXES,
    separator=".",
    territory=re.compile(rf"(stem|blocks|head|{CLASSIFIER})\..*"),
    trained=as_published,
)

OURS_VIT = Dialect(
    name=OURS.name,
    anchor=POSITIONS,
    layer_names=our_names,
    leaves={
        "embedding": {name: name for name in ("class_token", "positions")},
        **dict.fromkeys(("conv", "layer_norm", "dense"), _SAME_LEAVES),
    },
    axes=OUR_AXES,
    separator=".",
    territory=re.compile(rf"(embed|blocks|norm|{CLASSIFIER})\..*"),
    # Not asked for: our files have a description.
    trained=lambda model, architecture: {},
    network=VisionTransformerSpec,
)
