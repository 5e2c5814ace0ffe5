"""The tensors of a network, from its spec alone: names, shapes and what they are.

Names are the attributes of the module that lead to a tensor, joined by dots:
``blocks.3.expand.conv.kernel``, ``blocks.3.expand.norm.scale``, ``classifier.bias``.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
from flax import nnx

from effnetv2_jax.models import EfficientNetSpec, Spec, VisionTransformerSpec
from effnetv2_jax.models.efficientnet_specs import BlockSpec

# ``norm`` is batch norm; an embedding's parts have no layer but the one that they are added in.
Kind = Literal["conv", "depthwise", "norm", "dense", "layer_norm", "embedding"]

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


def layers(spec: Spec, num_classes: int) -> list[Layer]:
    """All layers with weights, from the image to the classifier.

    Args:
        spec: of the network.
        num_classes: of the classifier; 0 for none.
    """
    found = list(_BODIES[type(spec)](spec))
    return found + ([_dense(CLASSIFIER, spec.num_features, num_classes)] if num_classes else [])


def _efficientnet(spec: EfficientNetSpec) -> Iterator[Layer]:
    yield _conv("stem.conv", 3, 3, spec.stem_filters)
    yield _norm("stem.norm", spec.stem_filters)
    for number, block in enumerate(spec.blocks):
        yield from _block(f"blocks.{number}", block)
    yield _conv("head.conv", 1, spec.blocks[-1].filters, spec.head_filters)
    yield _norm("head.norm", spec.head_filters)


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


def _vit(spec: VisionTransformerSpec) -> Iterator[Layer]:
    width, inside = spec.width, spec.width * spec.mlp_ratio
    yield _conv("embed.patches", spec.patch_size, 3, width, bias=True)
    tokens: dict[str, tuple[int, ...]] = {
        "class_token": (1, 1, width),
        "positions": (1, 1 + spec.grid**2, width),
    }
    yield Layer("embed", "embedding", tokens)
    for number in range(spec.depth):
        block = f"blocks.{number}"
        yield _layer_norm(f"{block}.attention_norm", width)
        yield _dense(f"{block}.attention.qkv", width, 3 * width)
        yield _dense(f"{block}.attention.project", width, width)
        yield _layer_norm(f"{block}.mlp_norm", width)
        yield _dense(f"{block}.mlp.expand", width, inside)
        yield _dense(f"{block}.mlp.project", inside, width)
    yield _layer_norm("norm", width)


def _dense(name: str, inputs: int, outputs: int) -> Layer:
    return Layer(name, "dense", {"kernel": (inputs, outputs), "bias": (outputs,)})


def _layer_norm(name: str, channels: int) -> Layer:
    return Layer(name, "layer_norm", dict.fromkeys(("scale", "bias"), (channels,)))


_BODIES: Mapping[type[Spec], Callable[[Any], Iterator[Layer]]] = {
    EfficientNetSpec: _efficientnet,
    VisionTransformerSpec: _vit,
}
"""All but the classifier, by the kind of network."""


def shapes(spec: Spec, num_classes: int) -> dict[str, tuple[int, ...]]:
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
