"""Dense 3 × 3 convolutions on CPU with half of the multiplications: Winograd's F(4, 3).

The method works along height: four rows of a result are made from six rows of an image (Lavin and
Gray 2016, arXiv 1509.09308). Sums of those rows are multiplied with sums of the kernel's three
rows, and sums of the products are the rows of the result. These are six products in place of
twelve. Each product is a convolution along width, which XLA computes. Working along both axes would
take a quarter of the multiplications, but would pass over memory more often than that saves, with
a larger error (docs/performance.md).

Arrays are float32, images NHWC, kernels HWIO. Errors are a few millionths of the largest number.
"""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.export import is_symbolic_dim

from effnetv2_jax.models.kernels.activations import Value
from effnetv2_jax.models.kernels.isolation import isolated
from effnetv2_jax.models.kernels.on_cpu import Pads

_SIZE = 3
_ROWS = 4
_SUMS = _ROWS + _SIZE - 1
_PADS: Pads = ((1, 1), (1, 1))

# From polynomials at 0, ±1, ±2 and ∞. Each row holds the weights of one sum: of six image rows,
_OF_IMAGE = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
# of three kernel rows,
_OF_KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    np.float32,
)
# and of six products.
_OF_PRODUCTS = np.array(
    [
        [1, 1, 1, 1, 1, 0],
        [0, 1, -1, 2, -2, 0],
        [0, 1, 1, 4, 4, 0],
        [0, 1, -1, 8, -8, 1],
    ],
    np.float32,
)

# Sums cost time in proportion to inputs + outputs; products save it in proportion to inputs ·
# outputs. With fewer channels than this, the sums cost more.
_LEAST_CHANNELS = 15
# Rows are computed in fours. This is the largest ratio of computed rows to rows of the result.
_MOST_ROWS = 1.25


def suits(x: Value, kernel: jax.Array, stride: int) -> bool:
    """Returns True if ``conv`` can compute a convolution with this stride, and faster than XLA."""
    height = x.shape[1]
    inputs, outputs = kernel.shape[2:]
    return (
        x.dtype == jnp.float32
        and kernel.shape[:2] == (_SIZE, _SIZE)
        and stride == 1
        and inputs * outputs >= _LEAST_CHANNELS * (inputs + outputs)
        and not is_symbolic_dim(height)
        and _tiles(height) * _ROWS <= _MOST_ROWS * height
    )


def conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1, pads: Pads = _PADS) -> jax.Array:
    """Returns the convolution of images [batch, height, width, in_channels].

    Stride and pads are those that ``suits`` admits, and no others.
    """
    products = _products(_image_sums(x), _kernel_sums(kernel))
    return _result(products, height=x.shape[1])


def gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, *, stride: int = 1, pads: Pads = _PADS
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of the convolution by x and by its kernel."""
    kernel_sums, pull_kernel = jax.vjp(_kernel_sums, kernel)
    _, pull = jax.vjp(_products, _image_sums(x), kernel_sums)
    dimage_sums, dkernel_sums = pull(_products_gradient(dy))
    (dkernel,) = pull_kernel(dkernel_sums)
    return _image_gradient(dimage_sums, height=x.shape[1]), dkernel


def _tiles(height: int) -> int:
    return -(-height // _ROWS)


def _summed(weights: np.ndarray, arrays: Sequence[jax.Array]) -> jax.Array:
    terms = [weight * x for weight, x in zip(weights, arrays, strict=True) if weight]
    return functools.reduce(operator.add, terms)


def _sums_of_image(x: jax.Array) -> list[jax.Array]:
    """Returns six arrays [batch, tiles, width, channels]."""
    batch, height, width, channels = x.shape
    tiles = _tiles(height)
    # One row above, and below as many as complete the last tile.
    padded = jnp.pad(x, ((0, 0), (1, tiles * _ROWS + 1 - height), (0, 0), (0, 0)))
    rows = [
        lax.slice(
            padded,
            (0, first, 0, 0),
            (batch, first + (tiles - 1) * _ROWS + 1, width, channels),
            (1, _ROWS, 1, 1),
        )
        for first in range(_SUMS)
    ]
    return [_summed(weights, rows) for weights in _OF_IMAGE]


def _kernel_sums(kernel: jax.Array) -> list[jax.Array]:
    """Returns six kernels [1, 3, in_channels, out_channels]."""
    return [_summed(weights, list(kernel))[None] for weights in _OF_KERNEL]


def _products(image_sums: list[jax.Array], kernel_sums: list[jax.Array]) -> list[jax.Array]:
    """Returns six arrays [batch, tiles, width, out_channels]."""
    return [
        lax.conv_general_dilated(
            x, kernel, (1, 1), ((0, 0), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        for x, kernel in zip(image_sums, kernel_sums, strict=True)
    ]


def _rows_of_result(products: list[jax.Array], height: int) -> jax.Array:
    batch, tiles, width, channels = products[0].shape
    rows = jnp.stack([_summed(weights, products) for weights in _OF_PRODUCTS], axis=2)
    return rows.reshape(batch, tiles * _ROWS, width, channels)[:, :height]


_image_sums = isolated(_sums_of_image)
_result = isolated(_rows_of_result, static="height")


@functools.partial(isolated, static="height")
def _image_gradient(dsums: list[jax.Array], *, height: int) -> jax.Array:
    batch, _, width, channels = dsums[0].shape
    image = jax.ShapeDtypeStruct((batch, height, width, channels), jnp.float32)
    return jax.linear_transpose(_sums_of_image, image)(dsums)[0]


@isolated
def _products_gradient(dy: jax.Array) -> list[jax.Array]:
    batch, height, width, channels = dy.shape
    product = jax.ShapeDtypeStruct((batch, _tiles(height), width, channels), jnp.float32)
    result = functools.partial(_rows_of_result, height=height)
    return jax.linear_transpose(result, [product] * _SUMS)(dy)[0]
