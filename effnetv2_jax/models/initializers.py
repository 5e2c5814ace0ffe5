"""The numbers that parameters start with. All initialisers return float32 by default."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

_CHUNK = 1 << 16


@jax.jit
def _normal_chunk(key: jax.Array, index: jax.Array) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(key, index), (_CHUNK,), jnp.float32)


def _normal(key: jax.Array, shape: tuple[int, ...], stddev: float) -> jax.Array:
    """Draws normal float32 numbers, the same eagerly and under a transformation.

    They are drawn in chunks of one size. ``jax.random.normal`` compiles a program for every shape,
    which took 22 s on two cores for the 37 kernel shapes of V2-S; the chunks take less than 1 s.
    """
    size = math.prod(shape)
    chunks = -(-size // _CHUNK)
    first = _normal_chunk(key, 0)
    if isinstance(first, jax.core.Tracer):
        return _traced_normal(key, chunks)[:size].reshape(shape) * np.float32(stddev)
    flat = np.concatenate([first, *(_normal_chunk(key, i) for i in range(1, chunks))])
    return jax.device_put(flat[:size].reshape(shape) * np.float32(stddev))


# A function of its own with a jit, so that it is traced once for each number of chunks.
@functools.partial(jax.jit, static_argnums=1)
def _traced_normal(key: jax.Array, chunks: int) -> jax.Array:
    return jax.vmap(_normal_chunk, (None, 0))(key, jnp.arange(chunks)).reshape(-1)


def full(channels: int, value: float) -> jax.Array:
    """Returns float32 [channels], each equal to the value."""
    # From NumPy: jnp.full and jnp.asarray compile a program for every size.
    return jax.device_put(np.full(channels, value, np.float32))


def conv_kernel_init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws a normal HWIO kernel with standard deviation sqrt(2 / fan_out).

    As in the official code, it is not truncated, and fan_out is height · width · out_channels.
    """
    height, width, _, out_channels = shape
    return _normal(key, shape, (2.0 / (height * width * out_channels)) ** 0.5)


def depthwise_kernel_init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws a normal kernel [height, width, 1, channels] of variance 2 / (height · width).

    This is ``conv_kernel_init`` with one output channel in each group. TensorFlow keeps the
    multiplier (1) on the last axis of a depthwise kernel, where the official initialiser reads it.
    """
    height, width = shape[:2]
    return _normal(key, shape, (2.0 / (height * width)) ** 0.5)


def dense_kernel_init(
    key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32, scale: float = 1.0
) -> jax.Array:
    """Draws a kernel [num_features, num_classes], uniform in ±scale / sqrt(num_classes)."""
    bound = scale * shape[1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def small_normal_init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Draws normal numbers with standard deviation 0.02, for all kernels and embeddings of a DeiT.

    DeiT's code truncates at ±2, which is 100 standard deviations away.
    """
    return _normal(key, shape, 0.02).astype(dtype)
