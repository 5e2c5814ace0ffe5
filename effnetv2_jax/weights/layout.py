"""The tensors of a network: names, shapes and roles, as its module defines them.

A tensor's name is the path of attributes that leads to it, joined by dots:
``blocks.3.expand.conv.kernel``, ``blocks.3.expand.norm.scale``, ``classifier.bias``.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from effnetv2_jax.models.family import CLASSIFIER, Network, Spec
from effnetv2_jax.models.layers import DepthwiseConv
from effnetv2_jax.models.registry import OneKey, build


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a network.

    Attributes:
        shape: The tensor's shape; every tensor is float32.
        role: The use that a layer makes of the tensor, which decides how libraries call it and
            order its axes: ``conv``, ``depthwise`` or ``dense`` for a kernel, ``shift`` for the
            bias of a norm, and otherwise the last part of the name, for example ``scale``.
    """

    shape: tuple[int, ...]
    role: str


def tensors(spec: Spec, num_classes: int) -> dict[str, Tensor]:
    """Returns the tensors of a network by name, from the image to the classifier.

    Args:
        spec: The network.
        num_classes: The number of classes; 0 means no classifier.
    """
    found = {}
    for name, tensor in _with_one_class(spec).items():
        if not name.startswith(f"{CLASSIFIER}."):
            found[name] = tensor
        elif num_classes:
            shape = (*tensor.shape[:-1], num_classes)
            found[name] = dataclasses.replace(tensor, shape=shape)
    return found


@functools.lru_cache(maxsize=128)
def _with_one_class(spec: Spec) -> dict[str, Tensor]:
    """Reads the tensors off the module under a trace, so that no array is made."""
    found: dict[str, Tensor] = {}

    def create() -> tuple:
        rngs: Any = OneKey()
        found.update(_walk(build(spec, num_classes=1, rngs=rngs), ""))
        return ()

    jax.eval_shape(create)
    return found


def _walk(module: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    # vars() keeps the order in which the attributes were set; Flax's own walks sort them.
    for name, child in vars(module).items():
        if isinstance(child, (nnx.Param, nnx.BatchStat)):
            yield path + name, Tensor(child.shape, _role(module, name, child))
        elif isinstance(child, nnx.Pytree):
            yield from _walk(child, f"{path}{name}.")


def _role(module: Any, name: str, variable: nnx.Variable) -> str:
    if name == "bias" and hasattr(module, "scale"):
        return "shift"
    if name != "kernel":
        return name
    if isinstance(module, DepthwiseConv):
        return "depthwise"
    return "dense" if variable.ndim == 2 else "conv"


def variables(model: Network) -> dict[str, nnx.Variable]:
    """Returns the parameters and batch statistics of a model by name."""
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
