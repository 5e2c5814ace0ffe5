"""Batch norm folded into the convolutions before it: the same network, for inference only."""

from typing import TypeVar

import jax
from flax import nnx
from jax import lax

from effnetv2_jax.models.kernels.activations import per_channel
from effnetv2_jax.models.layers import ConvNorm

Model = TypeVar("Model", bound=nnx.Module)


def fold_batch_norm(model: Model) -> Model:
    """Returns a copy of a model without batch norm, which computes the same in evaluation.

    With moving statistics, batch norm multiplies each channel by a factor and adds a number to it.
    Here, the kernel before it takes the factor, and gets a bias. Outputs are equal except for
    rounding. The copy refuses to be trained.

    Args:
        model: A network or block of this package, or a module that contains some. It is not
            changed. A model without batch norm, such as a ViT, is copied.

    Returns:
        The copy. It has other parameters, so that weights of the model do not load into it.
    """
    folded = nnx.clone(model)
    layers = [x for _, x in nnx.iter_modules(folded) if isinstance(x, ConvNorm) and x.norm]
    # One program: without jit, every operation would be compiled for every shape.
    parts = _fold([_parts(x) for x in layers], [x.norm.epsilon for x in layers if x.norm])
    for layer, (kernel, bias) in zip(layers, parts, strict=True):
        layer.conv.kernel.set_value(kernel)
        layer.conv.bias = nnx.data(nnx.Param(bias))
        layer.norm = None
    return folded


def _parts(layer: ConvNorm) -> dict[str, jax.Array]:
    bias = layer.conv.bias
    parts = {name: getattr(layer.norm, name)[...] for name in ("scale", "bias", "mean", "var")}
    # Batch norm also normalises the convolution's own bias.
    offset = -parts["mean"] if bias is None else bias[...] - parts["mean"]
    return parts | {"kernel": layer.conv.kernel[...], "offset": offset}


@jax.jit
def _fold(
    layers: list[dict[str, jax.Array]], epsilons: list[float]
) -> list[tuple[jax.Array, jax.Array]]:
    folded = []
    for layer, epsilon in zip(layers, epsilons, strict=True):
        scale = layer["scale"] * lax.rsqrt(layer["var"] + epsilon)
        # Output channels are the last axis of a kernel, also of a depthwise one.
        folded.append(
            (
                layer["kernel"] * per_channel(scale, layer["kernel"].ndim),
                layer["offset"] * scale + layer["bias"],
            )
        )
    return folded
