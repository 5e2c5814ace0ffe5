"""Convolutions as functions, each with a gradient of its own and a lowering for each platform.

On accelerators, they and their gradients are XLA's convolutions. On CPU they are those of
``on_cpu`` and ``winograd`` if these are faster. The platform is chosen when a program is lowered,
so that a program compiled on one machine for another uses what is fast on the other.

Arrays are NHWC, kernels HWIO. An input may be a ``Normalized``, which the gradient then uses.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.export import is_symbolic_dim

from effnetv2_jax.models.kernels import on_cpu, winograd
from effnetv2_jax.models.kernels.activations import (
    Value,
    activated,
    per_channel,
    recomputed,
)
from effnetv2_jax.models.kernels.linear import linear_call
from effnetv2_jax.models.kernels.on_cpu import Pads
from effnetv2_jax.models.kernels.platforms import by_platform, is_neutral
from effnetv2_jax.runtime.errors import UsageError

PADDINGS = ("same", "symmetric")
"""Names of paddings. Both give ceil(size / stride) px; they differ if the stride is 2.

``same`` is TensorFlow's SAME, with the odd pixel of padding at the end, as in the published
networks. ``symmetric`` is PyTorch's, (kernel_size − 1) / 2 on both sides, which networks that were
trained there expect.
"""


def conv(
    x: Value, kernel: jax.Array, stride: int = 1, padding: str = "same", dilation: int = 1
) -> jax.Array:
    """Returns a dense convolution. With 1 × 1 px and stride 1, it is a matrix product.

    Args:
        x: [batch, height, width, in_channels].
        kernel: [kernel_height, kernel_width, in_channels, out_channels], of x's dtype.
        stride: The stride in both directions.
        padding: One of ``PADDINGS``.
        dilation: The distance in px of the pixels that neighbours in the kernel read. More than 1
            needs stride 1.

    Returns:
        [batch, ceil(height / stride), ceil(width / stride), out_channels], of x's dtype.
    """
    if kernel.shape[:2] == (1, 1) and stride == 1:
        kind = _PRODUCT
    elif dilation > 1:
        kind = _dilated(_DENSE, dilation)
    elif winograd.suits(x, kernel, stride):
        kind = _WINOGRAD
    elif kernel.shape[2] <= _FEW_CHANNELS and math.prod(kernel.shape[:3]) <= _FEW_TERMS:
        kind = _OF_FEW_CHANNELS
    else:
        kind = _DENSE
    return _convolved(x, kernel, kind, stride, _pads(x, kernel, stride, padding, dilation))


def depthwise_conv(
    x: Value, kernel: jax.Array, stride: int = 1, padding: str = "same", dilation: int = 1
) -> jax.Array:
    """Returns a depthwise convolution with multiplier 1.

    The kernel is [kernel_height, kernel_width, 1, channels]; the rest is as for ``conv``.
    """
    kind = _DEPTHWISE if dilation == 1 else _dilated(_DEPTHWISE, dilation)
    return _convolved(x, kernel, kind, stride, _pads(x, kernel, stride, padding, dilation))


def biased_depthwise_conv(
    x: Value,
    kernel: jax.Array,
    bias: jax.Array,
    stride: int = 1,
    padding: str = "same",
    activation: str | None = None,
    dilation: int = 1,
) -> jax.Array:
    """Returns activation(depthwise_conv(x, kernel) + bias), for networks without batch norm.

    The bias is [channels], of x's dtype. The activation is a name in ``ACTIVATIONS``, or None for
    the identity.
    """
    if dilation > 1:
        y = depthwise_conv(x, kernel, stride, padding, dilation)
        return activated(y + per_channel(bias, y.ndim), activation)
    pads = _pads(x, kernel, stride, padding)
    return _biased(jnp.asarray(x), kernel, bias, stride, pads, activation)


def _pads(x: Value, kernel: jax.Array, stride: int, padding: str, dilation: int = 1) -> Pads:
    if dilation > 1 and stride > 1:
        raise UsageError(f"a convolution of dilation {dilation} must have stride 1, got {stride}")
    sizes = [dilation * (size - 1) + 1 for size in kernel.shape[:2]]
    if padding == "symmetric":
        top, left = ((size - 1) // 2 for size in sizes)
        return (top, top), (left, left)
    rows, columns = lax.padtype_to_pads(x.shape[1:3], sizes, (stride, stride), "SAME")
    return rows, columns


# Those of a 3 × 3 kernel on an image. With more channels, or more terms in a sum, XLA is faster.
_FEW_CHANNELS, _FEW_TERMS = 4, 36


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of convolution. Its functions take x, kernel, and stride and pads by keyword.

    Attributes:
        default: Computes the convolution; JAX derives its gradients.
        on_cpu: Computes the convolution on CPU.
        gradients_on_cpu: Maps (x, kernel, dy) to the gradients by x and by kernel on CPU.
    """

    default: Callable[..., jax.Array]
    on_cpu: Callable[..., jax.Array]
    gradients_on_cpu: Callable[..., tuple[jax.Array, jax.Array]]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _convolved(x: Value, kernel: jax.Array, kind: _Kind, stride: int, pads: Pads) -> jax.Array:
    default, here = (
        functools.partial(function, stride=stride, pads=pads)
        for function in (kind.default, kind.on_cpu)
    )
    if is_neutral():
        # Converters do not know a matrix product of images for what it is.
        return _xla_conv(jnp.asarray(x), kernel, stride=stride, pads=pads)
    if kind.on_cpu is kind.default:
        return default(jnp.asarray(x), kernel)
    return by_platform(jnp.asarray(x), kernel, cpu=here, default=default)


@_convolved.defjvp
def _convolved_derivative(kind, stride, pads, primals, tangents):
    dx, dkernel = tangents

    def derivative(primals, tangents):
        (x, kernel), (dx, dkernel) = primals, tangents
        by_x = _convolved(dx, kernel, kind, stride, pads)
        return by_x + _convolved(x, dkernel, kind, stride, pads)

    backward = functools.partial(_convolved_backward, kind, stride, pads)
    dy = linear_call(derivative, backward, primals, (jnp.asarray(dx), dkernel))
    return _convolved(*primals, kind, stride, pads), dy


def _convolved_backward(kind, stride, pads, primals, dy):
    x, kernel = primals

    def derived(x, kernel, dy):
        forward = functools.partial(kind.default, stride=stride, pads=pads)
        return jax.vjp(forward, x, kernel)[1](dy)

    here = functools.partial(kind.gradients_on_cpu, stride=stride, pads=pads)
    return by_platform(recomputed(x), kernel, dy, cpu=here, default=derived)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _biased(x, kernel, bias, stride: int, pads: Pads, activation: str | None) -> jax.Array:
    # On CPU, bias and activation are part of the loop that convolves.
    here = functools.partial(on_cpu.conv_by_taps, stride=stride, pads=pads, activation=activation)
    default = functools.partial(_then_biased, stride=stride, pads=pads, activation=activation)
    return by_platform(x, kernel, bias, cpu=here, default=default)


def _then_biased(x, kernel, bias, *, stride: int, pads: Pads, activation: str | None):
    y = _convolved(x, kernel, _DEPTHWISE, stride, pads)
    return activated(y + per_channel(bias, y.ndim), activation)


@_biased.defjvp
def _biased_derivative(stride, pads, activation, primals, tangents):
    forward = functools.partial(_then_biased, stride=stride, pads=pads, activation=activation)
    dy = linear_call(
        lambda primals, tangents: jax.jvp(forward, primals, tangents)[1],
        lambda primals, dy: jax.vjp(forward, *primals)[1](dy),
        primals,
        tangents,
    )
    return _biased(*primals, stride, pads, activation), dy


def _xla_conv(
    x: jax.Array, kernel: jax.Array, *, stride: int, pads: Pads, dilation: int = 1
) -> jax.Array:
    # XLA takes padding as numbers or as a word. Only "same" depends on the size of the images.
    known = not any(map(is_symbolic_dim, itertools.chain(*pads)))
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads if known else "SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def _product(x: jax.Array, kernel: jax.Array, *, stride: int, pads: Pads) -> jax.Array:
    # On TPU this is the same program as XLA's convolution; on CPU it is 1.5 times faster.
    return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))


def _dense_gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, *, stride: int, pads: Pads
) -> tuple[jax.Array, jax.Array]:
    forward = functools.partial(_xla_conv, stride=stride, pads=pads)
    dx, dkernel = jax.vjp(forward, x, kernel)[1](dy)
    if stride > 1:
        dx = on_cpu.image_gradient(dy, kernel, shape=x.shape, stride=stride, pads=pads)
    return dx, dkernel


_PRODUCT = _Kind(_product, _product, on_cpu.product_gradients)
_WINOGRAD = _Kind(_xla_conv, winograd.conv, winograd.gradients)
_OF_FEW_CHANNELS = _Kind(_xla_conv, on_cpu.conv_by_taps, _dense_gradients)
_DENSE = _Kind(_xla_conv, _xla_conv, _dense_gradients)
_DEPTHWISE = _Kind(_xla_conv, on_cpu.conv_by_taps, on_cpu.depthwise_gradients)


@functools.cache
def _dilated(kind: _Kind, dilation: int) -> _Kind:
    """Returns a kind of convolution whose kernel reads every dilation-th pixel, at stride 1.

    On CPU, it is the given kind on images of every dilation-th pixel.
    """

    def inner(pads: Pads) -> Pads:
        (top, bottom), (left, right) = pads
        return (top // dilation, bottom // dilation), (left // dilation, right // dilation)

    def here(x, kernel, *, stride: int, pads: Pads):
        y = kind.on_cpu(on_cpu.phases(x, dilation), kernel, stride=stride, pads=inner(pads))
        return on_cpu.from_phases(y, dilation, x.shape)

    def gradients(x, kernel, dy, *, stride: int, pads: Pads):
        images, dimages = (on_cpu.phases(image, dilation) for image in (x, dy))
        dx, dkernel = kind.gradients_on_cpu(
            images, kernel, dimages, stride=stride, pads=inner(pads)
        )
        return on_cpu.from_phases(dx, dilation, x.shape), dkernel

    return _Kind(functools.partial(_xla_conv, dilation=dilation), here, gradients)
