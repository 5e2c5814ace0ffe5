"""Helpers that compare values and gradients of our convolutions with those of XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def reference(x, kernel, stride=1, padding="same"):
    """Returns XLA's convolution, with PyTorch's padding given as numbers."""
    size = kernel.shape[0]
    pads = "SAME" if padding == "same" else [((size - 1) // 2,) * 2] * 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def with_gradients(function, x, kernel, **options):
    out, pull = jax.vjp(lambda x, kernel: function(x, kernel, **options), x, kernel)
    # Independent of the output, which would make differences in rounding larger.
    dy = jnp.cos(jnp.arange(out[0].size)).reshape(out.shape[1:])
    return out, *pull(jnp.broadcast_to(dy, out.shape).astype(out.dtype))


def assert_close(ours, expected, tolerance):
    for value, other in zip(ours, expected, strict=True):
        assert value.dtype == other.dtype and value.shape == other.shape
        scale = np.abs(np.asarray(other, np.float32)).max()
        np.testing.assert_allclose(
            np.asarray(value, np.float32), np.asarray(other, np.float32), atol=tolerance * scale
        )
