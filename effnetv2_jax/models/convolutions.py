"""Convolutions as functions, each with a gradient of its own and a lowering per platform.

On accelerators they are XLA's convolutions, and so are their gradients. On CPU, XLA has slow ones:
its grouped convolution, and the gradient of any convolution by its kernel. There a depthwise
convolution is a sum of shifted products, and gradients are matrix products or sums of rows
(docs/performance.md has what was measured).

Arrays are NHWC, kernels HWIO. The platform is chosen when a program is lowered, so that a program
compiled on one machine for another has what the other is fast with. Derivatives are reverse-mode
alone: ``jax.jvp`` of these functions raises TypeError.
"""

import functools
import itertools
import operator
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from effnetv2_jax.models.isolation import isolated

PADDINGS = ("same", "symmetric")
"""Of convolutions. Both give ceil(size / stride) px; they differ where the stride is 2.

``same`` is TensorFlow's SAME, with the odd pixel of padding at the end, as published. ``symmetric``
is PyTorch's, (kernel_size − 1) / 2 on both sides, which networks that were trained there expect.
"""

_DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")

Pads = tuple[tuple[int, int], tuple[int, int]]
"""Pixels of padding before and after, of height and width."""


def matrix_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 1 × 1 convolution.

    Args:
        x: [batch, height, width, in_channels].
        kernel: [in_channels, out_channels], of x's dtype.

    Returns:
        [batch, height, width, out_channels], of x's dtype.
    """
    return _matrix_product(x, kernel)


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str = "same") -> jax.Array:
    """A dense convolution.

    Args:
        x: [batch, height, width, in_channels].
        kernel: [kernel_height, kernel_width, in_channels, out_channels], of x's dtype.
        stride: of both spatial axes.
        padding: one of ``PADDINGS``.

    Returns:
        [batch, ceil(height / stride), ceil(width / stride), out_channels], of x's dtype.
    """
    return _conv(x, kernel, stride, _pads(x, kernel, stride, padding))


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str = "same"
) -> jax.Array:
    """A depthwise convolution, of multiplier 1.

    Args:
        x: [batch, height, width, channels].
        kernel: [kernel_height, kernel_width, 1, channels], of x's dtype.
        stride: of both spatial axes.
        padding: one of ``PADDINGS``.

    Returns:
        [batch, ceil(height / stride), ceil(width / stride), channels], of x's dtype.
    """
    return _depthwise_conv(x, kernel, stride, _pads(x, kernel, stride, padding))


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


def _plain_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.dot_general(x, kernel, (((3,), (0,)), ((), ())))


_matrix_product = jax.custom_vjp(_plain_product)


def _matrix_product_forward(x, kernel):
    return _matrix_product(x, kernel), (x, kernel)


def _matrix_product_backward(residuals, dy):
    def derived(x, kernel, dy):
        return jax.vjp(_plain_product, x, kernel)[1](dy)

    return lax.platform_dependent(*residuals, dy, cpu=_product_gradients, default=derived)


_matrix_product.defvjp(_matrix_product_forward, _matrix_product_backward)


@isolated
def _product_gradients(x, kernel, dy):
    dx = lax.dot_general(dy, kernel, (((3,), (1,)), ((), ())))
    # The first operand is transposed in memory: the smaller one had better be.
    if x.shape[-1] > dy.shape[-1]:
        return dx, _over_pixels(dy, x).T
    return dx, _over_pixels(x, dy)


def _over_pixels(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sum over pixels of a_i · b_j: [batch, height, width, i], [..., j] → [i, j]."""
    axes = (0, 1, 2)
    return lax.dot_general(a, b, ((axes, axes), ((), ())))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    return _xla_conv(x, kernel, stride, pads)


def _conv_forward(x, kernel, stride, pads):
    return _conv(x, kernel, stride, pads), (x, kernel)


def _conv_backward(stride, pads, residuals, dy):
    return lax.platform_dependent(
        *residuals,
        dy,
        cpu=functools.partial(_conv_gradients_on_cpu, stride=stride, pads=pads),
        default=functools.partial(_xla_gradients, stride=stride, pads=pads),
    )


_conv.defvjp(_conv_forward, _conv_backward)


def _xla_gradients(x, kernel, dy, *, stride: int, pads: Pads, groups: int = 1):
    def forward(x, kernel):
        return _xla_conv(x, kernel, stride, pads, groups)

    return jax.vjp(forward, x, kernel)[1](dy)


def _conv_gradients_on_cpu(x, kernel, dy, *, stride: int, pads: Pads):
    in_channels, out_channels = kernel.shape[2:]
    dx, dkernel = _xla_gradients(x, kernel, dy, stride=stride, pads=pads)
    # With few channels there is more to copy than to multiply.
    if out_channels >= in_channels:
        dkernel = _kernel_gradient(x, dy, shape=kernel.shape, stride=stride, pads=pads)
    if out_channels >= 2 * in_channels:
        dx = _image_gradient(dy, kernel, shape=x.shape, stride=stride, pads=pads)
    return dx, dkernel


@functools.partial(isolated, static=("shape", "stride", "pads"))
def _kernel_gradient(
    x: jax.Array, dy: jax.Array, *, shape: tuple[int, ...], stride: int, pads: Pads
) -> jax.Array:
    """One matrix product for each row of the kernel, of the row's columns side by side."""
    (rows, columns), (height, width) = shape[:2], dy.shape[1:3]
    side_by_side = _side_by_side(x, columns=columns, width=width, stride=stride, pads=pads)
    last = (height - 1) * stride + 1
    # Not the other way round: dy is transposed in memory once for all rows.
    products = [_over_pixels(dy, side_by_side[:, i : i + last : stride]).T for i in range(rows)]
    return jnp.stack(products).reshape(shape)


@functools.partial(isolated, static=("columns", "width", "stride", "pads"))
def _side_by_side(x, *, columns: int, width: int, stride: int, pads: Pads):
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    last = (width - 1) * stride + 1
    return jnp.concatenate([x[:, :, j : j + last : stride] for j in range(columns)], axis=-1)


@functools.partial(isolated, static=("shape", "stride", "pads"))
def _image_gradient(
    dy: jax.Array, kernel: jax.Array, *, shape: tuple[int, ...], stride: int, pads: Pads
) -> jax.Array:
    """A matrix product for each tap, added where the tap had read."""

    def forward(x: jax.Array) -> jax.Array:
        taps = _taps(jnp.pad(x, ((0, 0), *pads, (0, 0))), x.shape, kernel.shape, stride, pads)
        products = [
            lax.dot_general(
                tap, kernel[i, j], (((3,), (0,)), ((), ())), preferred_element_type=jnp.float32
            )
            for i, j, tap in taps
        ]
        return functools.reduce(operator.add, products).astype(dy.dtype)

    return jax.linear_transpose(forward, jax.ShapeDtypeStruct(shape, dy.dtype))(dy)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_shifted_products, stride=stride, pads=pads),
        default=lambda x, kernel: _xla_conv(x, kernel, stride, pads, x.shape[-1]),
    )


def _depthwise_forward(x, kernel, stride, pads):
    return _depthwise_conv(x, kernel, stride, pads), (x, kernel)


def _depthwise_backward(stride, pads, residuals, dy):
    return lax.platform_dependent(
        *residuals,
        dy,
        cpu=functools.partial(_depthwise_gradients_on_cpu, stride=stride, pads=pads),
        default=functools.partial(
            _xla_gradients, stride=stride, pads=pads, groups=residuals[0].shape[-1]
        ),
    )


_depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


@functools.partial(isolated, static=("stride", "pads"))
def _depthwise_gradients_on_cpu(x, kernel, dy, *, stride: int, pads: Pads):
    products = _products_by_tap(
        _padded(x, pads=pads),
        dy,
        shape=x.shape,
        kernel_size=kernel.shape[:2],
        stride=stride,
        pads=pads,
    )
    dkernel = products.sum((1, 2, 3)).reshape(kernel.shape).astype(kernel.dtype)
    if stride == 1:
        # The same convolution, with the kernel turned round.
        (top, bottom), (left, right) = pads
        rows, columns = (size - 1 for size in kernel.shape[:2])
        ends = (rows - top, rows - bottom), (columns - left, columns - right)
        return _shifted_products(dy, kernel[::-1, ::-1], stride=1, pads=ends), dkernel

    def forward(x):
        return _summed_taps(jnp.pad(x, ((0, 0), *pads, (0, 0))), kernel, x.shape, stride, pads)

    return jax.linear_transpose(forward, jax.ShapeDtypeStruct(x.shape, x.dtype))(dy)[0], dkernel


@functools.partial(isolated, static=("stride", "pads"))
def _shifted_products(x: jax.Array, kernel: jax.Array, *, stride: int, pads: Pads) -> jax.Array:
    """A depthwise convolution as the sum over the kernel's taps of shifted images."""
    return _summed_taps(_padded(x, pads=pads), kernel, x.shape, stride, pads)


def _summed_taps(
    padded: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: int, pads: Pads
) -> jax.Array:
    taps = _taps(padded, shape, kernel.shape, stride, pads)
    # As everywhere, sums of bfloat16 numbers are float32.
    kernel = kernel.astype(jnp.float32)
    products = [tap.astype(jnp.float32) * kernel[i, j, 0] for i, j, tap in taps]
    return functools.reduce(operator.add, products).astype(padded.dtype)


@functools.partial(isolated, static="pads")
def _padded(x: jax.Array, *, pads: Pads) -> jax.Array:
    # In memory: within a loop over many taps, it would be a condition for each of them.
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


_MAX_TERMS = 16
"""More would make programs longer, not faster."""


@functools.partial(isolated, static=("shape", "kernel_size", "stride", "pads"))
def _products_by_tap(
    padded: jax.Array,
    dy: jax.Array,
    *,
    shape: tuple[int, ...],
    kernel_size: tuple[int, int],
    stride: int,
    pads: Pads,
) -> jax.Array:
    """What each tap saw times dy, of which images have been added to each other.

    That is elementwise, while a reduction to so few numbers reads all that it adds from memory.

    Returns:
        float32 [kernel height · kernel width, images that are left, height, width, channels].
    """
    batch, dtype = len(dy), jnp.float32
    left = next(n for n in range(-(-batch // _MAX_TERMS), batch + 1) if batch % n == 0)
    seen = {(i, j): tap for i, j, tap in _taps(padded, shape, kernel_size, stride, pads)}

    def summed(tap: jax.Array) -> jax.Array:
        terms = [
            tap[k : k + left].astype(dtype) * dy[k : k + left].astype(dtype)
            for k in range(0, batch, left)
        ]
        return functools.reduce(operator.add, terms)

    nothing = jnp.zeros((left, *dy.shape[1:]), dtype)
    places = itertools.product(*map(range, kernel_size))
    return jnp.stack([summed(seen[p]) if p in seen else nothing for p in places])


def _taps(
    padded: jax.Array,
    shape: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    stride: int,
    pads: Pads,
) -> Iterator[tuple[int, int, jax.Array]]:
    """What each tap of a kernel sees of an image, but of those that see only padding.

    The last maps of small images are 1 px wide: there, one tap of nine is left.

    Args:
        padded: the images.
        shape: of the images without padding.
        kernel_shape: begins with height and width.
        stride: of both.
        pads: that were added.

    Yields:
        Row and column of the tap, and [batch, output height, output width, channels].
    """
    batch, height, width, channels = shape
    rows = list(_slices(kernel_shape[0], stride, pads[0], height))
    columns = list(_slices(kernel_shape[1], stride, pads[1], width))
    for i, row_end in rows:
        for j, column_end in columns:
            end = (batch, row_end, column_end, channels)
            yield i, j, lax.slice(padded, (0, i, j, 0), end, (1, stride, stride, 1))


def _slices(
    kernel_size: int, stride: int, pad: tuple[int, int], size: int
) -> Iterator[tuple[int, int]]:
    """First and end of each tap's slice of a padded axis, where it sees something of the image."""
    span = (size + sum(pad) - kernel_size) // stride * stride + 1
    for first in range(kernel_size):
        end = first + span
        if any(pad[0] <= position < pad[0] + size for position in range(first, end, stride)):
            yield first, end
