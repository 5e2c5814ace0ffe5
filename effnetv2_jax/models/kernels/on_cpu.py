"""Convolutions and their gradients in the form that is fast with XLA on CPU.

XLA's own grouped convolution is slow there, and so is its gradient of a strided convolution by the
image. Here, a depthwise convolution is a sum of shifted products, and so is a dense one of an
image's three channels. Gradients are matrix products, or sums of images. Other dense convolutions
are XLA's, or those of ``winograd`` (docs/performance.md has the measurements).

Arrays are NHWC, kernels HWIO. All functions take padding as numbers, by keyword.
"""

import functools
import itertools
import operator
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jax.export import is_symbolic_dim

from effnetv2_jax.models.kernels.activations import activated, per_channel
from effnetv2_jax.models.kernels.isolation import isolated

Shape = tuple[int, ...]
Pads = tuple[tuple[int, int], tuple[int, int]]
"""Pixels of padding before and after, for height and for width."""


@functools.partial(isolated, static=("stride", "pads"))
def product_gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, *, stride: int, pads: Pads
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of a 1 × 1 convolution of stride 1 by x and by its kernel."""
    dx = lax.dot_general(dy, kernel[0, 0], (((3,), (1,)), ((), ())))
    # The first operand is transposed in memory, which costs less for the smaller one.
    if x.shape[-1] > dy.shape[-1]:
        return dx, _over_pixels(dy, x).T[None, None]
    return dx, _over_pixels(x, dy)[None, None]


def _over_pixels(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sums a_i · b_j over pixels: [batch, height, width, i], [..., j] → [i, j]."""
    axes = (0, 1, 2)
    return lax.dot_general(a, b, ((axes, axes), ((), ())))


@functools.partial(isolated, static=("shape", "stride", "pads"))
def image_gradient(
    dy: jax.Array, kernel: jax.Array, *, shape: Shape, stride: int, pads: Pads
) -> jax.Array:
    """Returns the gradient of a dense convolution by its input, which has this shape.

    There is one matrix product for each tap, which is added to the pixels that the tap read.
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
    """Returns the gradients of a depthwise convolution by x and by its kernel."""
    padded, size = _padded(x, pads), kernel.shape[:2]
    products = _products_by_tap(
        padded, dy, shape=x.shape, kernel_size=size, stride=stride, pads=pads
    )
    dkernel = products.sum((1, 2, 3)).reshape(kernel.shape).astype(kernel.dtype)
    if stride == 1:
        # The same convolution, with the kernel rotated by 180°.
        (top, bottom), (left, right) = pads
        rows, columns = (size - 1 for size in kernel.shape[:2])
        ends = (rows - top, rows - bottom), (columns - left, columns - right)
        return conv_by_taps(dy, kernel[::-1, ::-1], stride=1, pads=ends), dkernel

    def forward(x):
        return _summed_taps(_padded(x, pads), kernel, x.shape, stride, pads)

    return jax.linear_transpose(forward, x)(dy)[0], dkernel


def conv_by_taps(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    stride: int,
    pads: Pads,
    activation: str | None = None,
) -> jax.Array:
    """Returns a convolution as the sum of shifted images over the kernel's taps.

    This is fast if each output channel sees few input channels.

    Args:
        x: [batch, height, width, channels].
        kernel: [kernel_height, kernel_width, channels that an output sees, out_channels].
        bias: [out_channels], added in the same loop, or None.
        stride: The stride in both directions.
        pads: The padding.
        activation: A name in ``ACTIVATIONS``, computed in the same loop, or None for the identity.
    """
    # Not isolated: a loop that computes x can write directly into the padded array.
    padded = _padded(x, pads)
    return _tapped(
        padded, kernel, bias, shape=x.shape, stride=stride, pads=pads, activation=activation
    )


def phases(x: jax.Array, dilation: int) -> jax.Array:
    """Returns the images that a dilated kernel sees, each of every dilation-th pixel.

    They are [batch · dilation², ceil(height / dilation), ceil(width / dilation), channels], filled
    up with zeros.
    """
    batch, height, width, channels = x.shape
    rows, columns = -(-height // dilation), -(-width // dilation)
    ends = ((0, 0), (0, rows * dilation - height), (0, columns * dilation - width), (0, 0))
    x = jnp.pad(x, ends).reshape(batch, rows, dilation, columns, dilation, channels)
    x = x.transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(batch * dilation**2, rows, columns, channels)


def from_phases(x: jax.Array, dilation: int, shape: Shape) -> jax.Array:
    """Puts the images of ``phases`` together again; the first three axes have this shape."""
    batch, height, width = shape[:3]
    _, rows, columns, channels = x.shape
    x = x.reshape(batch, dilation, dilation, rows, columns, channels).transpose(0, 3, 1, 4, 2, 5)
    return x.reshape(batch, rows * dilation, columns * dilation, channels)[:, :height, :width]


def _padded(x: jax.Array, pads: Pads) -> jax.Array:
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


@functools.partial(isolated, static=("shape", "stride", "pads", "activation"))
def _tapped(
    padded: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    *,
    shape: Shape,
    stride: int,
    pads: Pads,
    activation: str | None,
) -> jax.Array:
    y = _summed_taps(padded, kernel, shape, stride, pads)
    return activated(y if bias is None else y + per_channel(bias, y.ndim), activation)


def _summed_taps(
    padded: jax.Array, kernel: jax.Array, shape: Shape, stride: int, pads: Pads
) -> jax.Array:
    # Sums of bfloat16 numbers are float32, here as everywhere.
    padded32, kernel = padded.astype(jnp.float32), kernel.astype(jnp.float32)
    products = [
        channels * per_channel(kernel[i, j, k], channels.ndim)
        for i, j, tap in _taps(padded32, shape, kernel.shape, stride, pads)
        for k, channels in enumerate(jnp.split(tap, kernel.shape[2], axis=-1))
    ]
    return functools.reduce(operator.add, products).astype(padded.dtype)


# More terms would make programs longer, not faster.
_MAX_TERMS = 16


@functools.partial(isolated, static=("shape", "kernel_size", "stride", "pads"))
def _products_by_tap(
    padded: jax.Array, dy: jax.Array, *, shape: Shape, kernel_size: Shape, stride: int, pads: Pads
) -> jax.Array:
    """Returns the products of what each tap saw with dy, added up over groups of images.

    They are float32 [kernel_height · kernel_width, remaining images, height, width, channels]. The
    sum is elementwise: a reduction to a number per channel would read all products from memory.
    """
    batch, dtype = dy.shape[0], jnp.float32
    left, starts = batch, range(1)  # of a batch whose size is not known yet
    if not is_symbolic_dim(batch):
        left = next(n for n in range(-(-batch // _MAX_TERMS), batch + 1) if batch % n == 0)
        starts = range(0, batch, left)
    seen = {(i, j): tap for i, j, tap in _taps(padded, shape, kernel_size, stride, pads)}

    def summed(tap: jax.Array) -> jax.Array:
        terms = [tap[k : k + left].astype(dtype) * dy[k : k + left].astype(dtype) for k in starts]
        return functools.reduce(operator.add, terms)

    nothing = jnp.zeros((left, *dy.shape[1:]), dtype)
    places = itertools.product(*map(range, kernel_size))
    return jnp.stack([summed(seen[p]) if p in seen else nothing for p in places])


def _taps(
    padded: jax.Array, shape: Shape, kernel_shape: Shape, stride: int, pads: Pads
) -> Iterator[tuple[int, int, jax.Array]]:
    """Yields row, column and the part of the images that each tap of a kernel sees.

    The parts are [batch, output height, output width, channels]; ``shape`` is without padding. Taps
    that see only padding are left out. The last maps of small images are 1 px wide: there, one of
    nine taps remains.
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
    """Yields first and end of each tap's slice of a padded axis, if it sees part of the image."""
    span = (size + sum(pad) - kernel_size) // stride * stride + 1
    for first in range(kernel_size):
        end = first + span
        # Of a size that is not known yet, each tap may see a part.
        if is_symbolic_dim(size) or any(
            pad[0] <= position < pad[0] + size for position in range(first, end, stride)
        ):
            yield first, end
