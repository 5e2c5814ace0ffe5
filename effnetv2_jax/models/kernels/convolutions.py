"""Convolutions as functions, each with a gradient of its own and a lowering per platform.

On accelerators they are XLA's convolutions, and so are their gradients; on CPU they are those of
``convolutions_on_cpu`` and ``winograd_on_cpu``, where these are faster. The platform is chosen when
a program is lowered, so that a program compiled on one machine for another has what the other is
fast with. Derivatives are reverse-mode alone: ``jax.jvp`` of these functions raises TypeError.

Arrays are NHWC, kernels HWIO.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
from jax import lax

from effnetv2_jax.models.kernels import on_cpu, winograd
from effnetv2_jax.models.kernels.activations import Origin, activated
from effnetv2_jax.models.kernels.on_cpu import Pads

PADDINGS = ("same", "symmetric")
"""Of convolutions. Both give ceil(size / stride) px; they differ where the stride is 2.

``same`` is TensorFlow's SAME, with the odd pixel of padding at the end, as published. ``symmetric``
is PyTorch's, (kernel_size − 1) / 2 on both sides, which networks that were trained there expect.
"""

_DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")


def conv(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    padding: str = "same",
    origin: Origin | None = None,
) -> jax.Array:
    """A dense convolution; of 1 × 1 px and stride 1, a matrix product.

    Args:
        x: [batch, height, width, in_channels].
        kernel: [kernel_height, kernel_width, in_channels, out_channels], of x's dtype.
        stride: of both spatial axes.
        padding: one of ``PADDINGS``.
        origin: of x, if it has one.

    Returns:
        [batch, ceil(height / stride), ceil(width / stride), out_channels], of x's dtype.
    """
    if kernel.shape[:2] == (1, 1) and stride == 1:
        kind = _PRODUCT
    elif winograd.suits(x, kernel, stride):
        kind = _WINOGRAD
    else:
        kind = _DENSE
    return _convolved(x, kernel, origin, kind, stride, _pads(x, kernel, stride, padding))


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    padding: str = "same",
    origin: Origin | None = None,
) -> jax.Array:
    """A depthwise convolution, of multiplier 1.

    Args:
        x: [batch, height, width, channels].
        kernel: [kernel_height, kernel_width, 1, channels], of x's dtype.
        stride: of both spatial axes.
        padding: one of ``PADDINGS``.
        origin: of x, if it has one.

    Returns:
        [batch, ceil(height / stride), ceil(width / stride), channels], of x's dtype.
    """
    return _convolved(x, kernel, origin, _DEPTHWISE, stride, _pads(x, kernel, stride, padding))


def biased_depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    stride: int = 1,
    padding: str = "same",
    activation: str | None = None,
) -> jax.Array:
    """activation(depthwise_conv(x, kernel) + bias), as a network without batch norm has it.

    Args:
        x: as for ``depthwise_conv``.
        kernel: likewise.
        bias: [channels], of x's dtype.
        stride: as for ``depthwise_conv``.
        padding: likewise.
        activation: a name in ``ACTIVATIONS``; None for none.
    """
    return _biased(x, kernel, bias, stride, _pads(x, kernel, stride, padding), activation)


def _pads(x: jax.Array, kernel: jax.Array, stride: int, padding: str) -> Pads:
    if padding == "symmetric":
        rows, columns = ((size - 1) // 2 for size in kernel.shape[:2])
        return (rows, rows), (columns, columns)
    (top, bottom), (left, right) = lax.padtype_to_pads(
        x.shape[1:3], kernel.shape[:2], (stride, stride), "SAME"
    )
    return (top, bottom), (left, right)


def _xla_conv(
    x: jax.Array, kernel: jax.Array, stride: int, pads: Pads, groups: int = 1
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        dimension_numbers=_DIMENSION_NUMBERS,
        feature_group_count=groups,
    )


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How a kind of convolution is computed; all take x, kernel, and stride and pads by keyword.

    Attributes:
        forward: on every platform.
        derived: from which JAX derives the gradients on all platforms but CPU.
        gradients_on_cpu: of (x, kernel, dy) → those by x and by kernel.
    """

    forward: Callable[..., jax.Array]
    derived: Callable[..., jax.Array]
    gradients_on_cpu: Callable[..., tuple[jax.Array, jax.Array]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _convolved(
    x: jax.Array, kernel: jax.Array, origin: Origin | None, kind: _Kind, stride: int, pads: Pads
) -> jax.Array:
    return kind.forward(x, kernel, stride=stride, pads=pads)


def _convolved_forward(x, kernel, origin, kind, stride, pads):
    return _convolved(x, kernel, origin, kind, stride, pads), (x, kernel, origin)


def _convolved_backward(kind, stride, pads, residuals, dy):
    x, kernel, origin = residuals
    x = x if origin is None else origin.anew(x)

    def derived(x, kernel, dy):
        forward = functools.partial(kind.derived, stride=stride, pads=pads)
        return jax.vjp(forward, x, kernel)[1](dy)

    here = functools.partial(kind.gradients_on_cpu, stride=stride, pads=pads)
    dx, dkernel = lax.platform_dependent(x, kernel, dy, cpu=here, default=derived)
    return dx, dkernel, None


_convolved.defvjp(_convolved_forward, _convolved_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _biased(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    stride: int,
    pads: Pads,
    activation: str | None,
) -> jax.Array:
    # On CPU, in the loop that convolves.
    here = functools.partial(on_cpu.conv_by_taps, stride=stride, pads=pads, activation=activation)
    default = functools.partial(_then_biased, stride=stride, pads=pads, activation=activation)
    return lax.platform_dependent(x, kernel, bias, cpu=here, default=default)


def _then_biased(x, kernel, bias, *, stride: int, pads: Pads, activation: str | None):
    return activated(_convolved(x, kernel, None, _DEPTHWISE, stride, pads) + bias, activation)


def _biased_forward(x, kernel, bias, stride, pads, activation):
    return _biased(x, kernel, bias, stride, pads, activation), (x, kernel, bias)


def _biased_backward(stride, pads, activation, residuals, dy):
    forward = functools.partial(_then_biased, stride=stride, pads=pads, activation=activation)
    return jax.vjp(forward, *residuals)[1](dy)


_biased.defvjp(_biased_forward, _biased_backward)


def _product(x: jax.Array, kernel: jax.Array, *, stride: int, pads: Pads) -> jax.Array:
    # The same program on TPU, and 1.5 times faster than XLA's convolution on CPU.
    return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))


# Of 3 × 3 px of an image. With more channels, or more terms of a sum, XLA's convolution is faster.
_FEW_CHANNELS, _FEW_TERMS = 4, 36


def _dense(x: jax.Array, kernel: jax.Array, *, stride: int, pads: Pads) -> jax.Array:
    default = functools.partial(_xla_conv, stride=stride, pads=pads)
    if kernel.shape[2] > _FEW_CHANNELS or math.prod(kernel.shape[:3]) > _FEW_TERMS:
        return default(x, kernel)
    here = functools.partial(on_cpu.conv_by_taps, stride=stride, pads=pads)
    return lax.platform_dependent(x, kernel, cpu=here, default=default)


def _dense_gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, *, stride: int, pads: Pads
) -> tuple[jax.Array, jax.Array]:
    forward = functools.partial(_xla_conv, stride=stride, pads=pads)
    dx, dkernel = jax.vjp(forward, x, kernel)[1](dy)
    if stride > 1:
        dx = on_cpu.image_gradient(dy, kernel, shape=x.shape, stride=stride, pads=pads)
    return dx, dkernel


def _winograd(x: jax.Array, kernel: jax.Array, *, stride: int, pads: Pads) -> jax.Array:
    default = functools.partial(_xla_conv, stride=stride, pads=pads)
    return lax.platform_dependent(x, kernel, cpu=winograd.conv, default=default)


def _winograd_gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, *, stride: int, pads: Pads
) -> tuple[jax.Array, jax.Array]:
    return winograd.gradients(x, kernel, dy)


def _grouped(x: jax.Array, kernel: jax.Array, *, stride: int, pads: Pads) -> jax.Array:
    return _xla_conv(x, kernel, stride, pads, x.shape[-1])


def _depthwise(x: jax.Array, kernel: jax.Array, *, stride: int, pads: Pads) -> jax.Array:
    here = functools.partial(on_cpu.conv_by_taps, stride=stride, pads=pads)
    default = functools.partial(_grouped, stride=stride, pads=pads)
    return lax.platform_dependent(x, kernel, cpu=here, default=default)


_PRODUCT = _Kind(_product, _product, on_cpu.product_gradients)
_WINOGRAD = _Kind(_winograd, _xla_conv, _winograd_gradients)
_DENSE = _Kind(_dense, _xla_conv, _dense_gradients)
_DEPTHWISE = _Kind(_depthwise, _grouped, on_cpu.depthwise_gradients)
