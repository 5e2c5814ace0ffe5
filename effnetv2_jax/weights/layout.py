"""The tensors of a network, from its spec alone: names, shapes and what they are.

Names are the attributes of the module that lead to a tensor, joined by dots:
``blocks.3.expand.conv.kernel``, ``blocks.3.expand.norm.scale``, ``classifier.bias``.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax
from flax import nnx

from effnetv2_jax.models import EfficientNetSpec
from effnetv2_jax.models.efficientnet_specs import BlockSpec

Kind = Literal["conv", "depthwise", "norm", "dense"]

CLASSIFIER = "classifier"


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with weights.

    Attributes:
        name: that its tensors' names begin with.
        kind: of layer.
        shapes: of its tensors, by the last part of their names.
    """

    name: str
    kind: Kind
    shapes: dict[str, tuple[int, ...]]


def layers(spec: EfficientNetSpec, num_classes: int) -> list[Layer]:
    """All layers with weights, from the stem to the classifier.

    Args:
        spec: of the network.
        num_classes: of the classifier; 0 for none.
    """
    found = [
        _conv("stem.conv", 3, 3, spec.stem_filters),
        _norm("stem.norm", spec.stem_filters),
    ]
    for number, block in enumerate(spec.blocks):
        found += _block(f"blocks.{number}", block)
    found += [
        _conv("head.conv", 1, spec.blocks[-1].filters, spec.head_filters),
        _norm("head.norm", spec.head_filters),
    ]
    if num_classes:
        shapes = {"kernel": (spec.head_filters, num_classes), "bias": (num_classes,)}
        found.append(Layer(CLASSIFIER, "dense", shapes))
    return found


def _block(name: str, block: BlockSpec) -> Iterator[Layer]:
    inside = block.expanded_filters
    fused = block.op == "fused"
    # The spatial convolution is the first of a fused block, and the second of the other.
    size = block.kernel_size if fused else 1
    if block.expand_ratio != 1:
        yield _conv(f"{name}.expand.conv", size, block.in_filters, inside)
        yield _norm(f"{name}.expand.norm", inside)
        size = 1
    if not fused:
        shape = (block.kernel_size, block.kernel_size, 1, inside)
        yield Layer(f"{name}.depthwise.conv", "depthwise", {"kernel": shape})
        yield _norm(f"{name}.depthwise.norm", inside)
    if squeezed := block.squeezed_filters:
        yield _conv(f"{name}.se.reduce", 1, inside, squeezed, bias=True)
        yield _conv(f"{name}.se.expand", 1, squeezed, inside, bias=True)
    yield _conv(f"{name}.project.conv", size, inside, block.filters)
    yield _norm(f"{name}.project.norm", block.filters)


def _conv(name: str, size: int, inputs: int, outputs: int, bias: bool = False) -> Layer:
    shapes: dict[str, tuple[int, ...]] = {"kernel": (size, size, inputs, outputs)}
    return Layer(name, "conv", shapes | ({"bias": (outputs,)} if bias else {}))


def _norm(name: str, channels: int) -> Layer:
    return Layer(name, "norm", dict.fromkeys(("scale", "bias", "mean", "var"), (channels,)))


def shapes(spec: EfficientNetSpec, num_classes: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor by its name; all are float32."""
    return {
        f"{layer.name}.{leaf}": shape
        for layer in layers(spec, num_classes)
        for leaf, shape in layer.shapes.items()
    }


def variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """The parameters and batch statistics of a model by name."""
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def tensors(model: nnx.Module) -> dict[str, jax.Array]:
    """Their values."""
    return {name: variable[...] for name, variable in variables(model).items()}
