"""Convolutions and their gradients as XLA on CPU is fast with.

XLA's own grouped convolution is slow there, and so is its gradient of a strided one by the image.
A depthwise convolution is a sum of shifted products here, as is a dense one of an image's three
channels; gradients are matrix products, or sums of images. Other dense ones are XLA's, or those of
``winograd_on_cpu`` (docs/performance.md has what was measured).

Arrays are NHWC, kernels HWIO. All functions take padding as numbers, by keyword.
"""

import functools
import itertools
import operator
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from effnetv2_jax.models.kernels.activations import activated
from effnetv2_jax.models.kernels.isolation import isolated

Pads = tuple[tuple[int, int], tuple[int, int]]
"""Pixels of padding before and after, of height and width."""


@functools.partial(isolated, static=("stride", "pads"))
def product_gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, *, stride: int, pads: Pads
) -> tuple[jax.Array, jax.Array]:
    """Of a 1 × 1 convolution of stride 1, by x and by its kernel [1, 1, in, out]."""
    dx = lax.dot_general(dy, kernel[0, 0], (((3,), (1,)), ((), ())))
    # The first operand is transposed in memory: the smaller one had better be.
    if x.shape[-1] > dy.shape[-1]:
        return dx, _over_pixels(dy, x).T[None, None]
    return dx, _over_pixels(x, dy)[None, None]


def _over_pixels(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sum over pixels of a_i · b_j: [batch, height, width, i], [..., j] → [i, j]."""
    axes = (0, 1, 2)
    return lax.dot_general(a, b, ((axes, axes), ((), ())))


@functools.partial(isolated, static=("shape", "stride", "pads"))
def image_gradient(
    dy: jax.Array, kernel: jax.Array, *, shape: tuple[int, ...], stride: int, pads: Pads
) -> jax.Array:
    """Of a dense convolution by its input, which is of this shape.

    A matrix product for each tap, added where the tap had read.
    """

    def forward(x: jax.Array) -> jax.Array:
        taps = _taps(_padded(x, pads), x.shape, kernel.shape, stride, pads)
        products = [
            lax.dot_general(
                tap, kernel[i, j], (((3,), (0,)), ((), ())), preferred_element_type=jnp.float32
            )
            for i, j, tap in taps
        ]
        return functools.reduce(operator.add, products).astype(dy.dtype)

    return jax.linear_transpose(forward, jax.ShapeDtypeStruct(shape, dy.dtype))(dy)[0]


@functools.partial(isolated, static=("stride", "pads"))
def depthwise_gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, *, stride: int, pads: Pads
) -> tuple[jax.Array, jax.Array]:
    """Of a depthwise convolution, by x and by its kernel."""
    products = _products_by_tap(
        _padded(x, pads),
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
        return conv_by_taps(dy, kernel[::-1, ::-1], stride=1, pads=ends), dkernel

    def forward(x):
        return _summed_taps(_padded(x, pads), kernel, x.shape, stride, pads)

    return jax.linear_transpose(forward, jax.ShapeDtypeStruct(x.shape, x.dtype))(dy)[0], dkernel


def conv_by_taps(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    stride: int,
    pads: Pads,
    activation: str | None = None,
) -> jax.Array:
    """The sum over a kernel's taps of shifted images, for few input channels of each output.

    Args:
        x: [batch, height, width, channels].
        kernel: [kernel height, kernel width, channels that an output sees, out_channels].
        bias: [out_channels], added in the same loop; None for none.
        stride: of both spatial axes.
        pads: of both.
        activation: of the sum, in the same loop; a name in ``ACTIVATIONS``, or None.
    """
    # Not isolated: where x is computed by a loop, it had better write into the padded array.
    padded = _padded(x, pads)
    return _tapped(
        padded, kernel, bias, shape=x.shape, stride=stride, pads=pads, activation=activation
    )


def _padded(x: jax.Array, pads: Pads) -> jax.Array:
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


@functools.partial(isolated, static=("shape", "stride", "pads", "activation"))
def _tapped(
    padded: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    *,
    shape: tuple[int, ...],
    stride: int,
    pads: Pads,
    activation: str | None,
) -> jax.Array:
    y = _summed_taps(padded, kernel, shape, stride, pads)
    return activated(y if bias is None else y + bias, activation)


def _summed_taps(
    padded: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: int, pads: Pads
) -> jax.Array:
    # As everywhere, sums of bfloat16 numbers are float32.
    padded32, kernel = padded.astype(jnp.float32), kernel.astype(jnp.float32)
    products = [
        channels * kernel[i, j, k]
        for i, j, tap in _taps(padded32, shape, kernel.shape, stride, pads)
        for k, channels in enumerate(jnp.split(tap, kernel.shape[2], axis=-1))
    ]
    return functools.reduce(operator.add, products).astype(padded.dtype)


_MAX_TERMS = 16
"""More would make programs longer, not faster."""


@functools.partial(isolated, static=("shape", "kernel_size", "stride", "pads"))
def _products_by_tap(
    padded: jax.Array,
    dy: jax.Array,
    *,
    shape: tuple[int, ...],
    kernel_size: tuple[int, ...],
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
