"""Batch norm folded into the convolutions before it: the same network, for inference alone."""

from typing import TypeVar

import jax
from flax import nnx
from jax import lax

from effnetv2_jax.models.efficientnet import ConvNorm
from effnetv2_jax.models.layers import BatchNorm

Model = TypeVar("Model", bound=nnx.Module)


def fold_batch_norm(model: Model) -> Model:
    """A copy of a model without batch norm, which computes what the model does in evaluation.

    With moving statistics, batch norm multiplies a channel and adds to it: the kernel before it
    takes the factor and gets a bias. Outputs are equal but for rounding; training is refused.

    Args:
        model: a network or block of this package, or a module that holds some; it stays as it is.
            One without batch norm (a ViT) is copied.

    Returns:
        The copy; of other parameters, so that weights of the model do not load into it any more.
    """
    folded = nnx.clone(model)
    layers = [
        (layer, layer.norm)
        for _, layer in nnx.iter_modules(folded)
        if isinstance(layer, ConvNorm) and layer.norm is not None
    ]
    # As one program: operation by operation, each would be compiled for every shape.
    parts = _fold([_parts(*pair) for pair in layers], [norm.epsilon for _, norm in layers])
    for (layer, _), (kernel, bias) in zip(layers, parts, strict=True):
        layer.conv.kernel.set_value(kernel)
        layer.conv.bias = nnx.data(nnx.Param(bias))
        layer.norm = None
    return folded


def _parts(layer: ConvNorm, norm: BatchNorm) -> dict[str, jax.Array]:
    bias = layer.conv.bias
    parts = {name: getattr(norm, name)[...] for name in ("scale", "bias", "mean", "var")}
    return parts | {
        "kernel": layer.conv.kernel[...],
        # What the convolution adds itself is normalised with the rest.
        "offset": -parts["mean"] if bias is None else bias[...] - parts["mean"],
    }


@jax.jit
def _fold(
    layers: list[dict[str, jax.Array]], epsilons: list[float]
) -> list[tuple[jax.Array, jax.Array]]:
    folded = []
    for layer, epsilon in zip(layers, epsilons, strict=True):
        scale = layer["scale"] * lax.rsqrt(layer["var"] + epsilon)
        # Output channels are a kernel's last axis, also of a depthwise one.
        folded.append((layer["kernel"] * scale, layer["offset"] * scale + layer["bias"]))
    return folded
