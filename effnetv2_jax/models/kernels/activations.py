"""Activations after batch norm, as a value that a backward pass can compute again.

Batch norm ends with a scale and a shift of every channel, then an activation. ``normalize`` does
these steps and returns a ``Normalized``, which the layers after it take in place of an array.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from effnetv2_jax.models.kernels.isolation import isolated
from effnetv2_jax.models.kernels.linear import linear_call
from effnetv2_jax.models.kernels.platforms import by_platform

ACTIVATIONS = {"silu": jax.nn.silu, "relu6": jax.nn.relu6}
"""Activations by the names that specs give them."""


def activated(x: jax.Array, activation: str | None) -> jax.Array:
    """Returns the activation of x by its name in ``ACTIVATIONS``; None is the identity."""
    return x if activation is None else ACTIVATIONS[activation](x)


def per_channel(x: jax.Array, ndim: int) -> jax.Array:
    """Returns [channels] as [1, …, 1, channels] with ndim axes, to compute with images.

    NumPy's rules would add the axes too, but ``jax_numpy_rank_promotion="raise"`` forbids that.
    """
    return lax.broadcast_to_rank(x, ndim)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["x", "scale", "shift", "gate", "array"],
    meta_fields=["activation"],
)
@dataclasses.dataclass(frozen=True)
class Normalized:
    """The result of batch norm and an activation, with what it can be recomputed from.

    ``array`` is ``activation(x · scale + shift) · gate``. On TPU, moving an activation to memory
    and back takes longer than computing it again. A convolution that takes this value therefore
    keeps ``x`` for its gradient, which batch norm keeps in any case, and computes ``array`` again
    in the backward pass. On CPU and GPU it keeps ``array``.

    The value is a pytree, so that it passes through JAX's transformations. It can be used as an
    array in functions of ``jax.numpy`` and NumPy; everything else takes its ``array``:

    >>> import jax.numpy as jnp
    >>> from effnetv2_jax.models.layers import BatchNorm
    >>> y = BatchNorm(4)(jnp.ones((2, 8, 8, 4)))
    >>> y.shape, jnp.mean(y).shape, y.array.sum().shape
    ((2, 8, 8, 4), (), ())

    Attributes:
        x: The input of batch norm, [..., channels].
        scale: The factor of each channel, float32 [channels].
        shift: The summand of each channel, float32 [channels].
        gate: The factor of each image and channel, [batch, 1, 1, channels], or None.
        array: The result, [..., channels].
        activation: A name in ``ACTIVATIONS``, or None for the identity.
    """

    x: jax.Array
    scale: jax.Array
    shift: jax.Array
    gate: jax.Array | None
    array: jax.Array
    activation: str | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of ``array``."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of ``array``."""
        return self.array.dtype

    def astype(self, dtype) -> "jax.Array | Normalized":
        """Returns this value if it has the dtype, else ``array`` cast to it."""
        return self if self.dtype == dtype else self.array.astype(dtype)

    def __jax_array__(self) -> jax.Array:
        return self.array

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.array, dtype, copy=copy)


Value = jax.Array | Normalized
"""The input of a layer: an array, or the result of batch norm."""


def normalize(
    x: jax.Array, scale: jax.Array, shift: jax.Array, activation: str | None, dtype
) -> Normalized:
    """Returns activation(x · scale + shift); the arguments are those of ``scale_shift``."""
    array = scale_shift(x, scale, shift, activation, dtype)
    return Normalized(x, scale, shift, None, array, activation)


def gated(x: Value, gate: jax.Array) -> Value:
    """Returns x · gate, of x's dtype, for a gate [batch, 1, 1, channels]."""
    gate = gate.astype(x.dtype)
    product = _gated(x, gate)
    # A value remembers one gate. With a second one, it becomes a plain array.
    if isinstance(x, Normalized) and x.gate is None:
        return dataclasses.replace(x, array=product, gate=gate)
    return product


def recomputed(x: Value) -> jax.Array:
    """Returns the array of x in a backward pass. On TPU, that of batch norm is computed again."""

    def again(x: Normalized) -> jax.Array:
        # Without the barrier, XLA would find that it has the result already, and keep it.
        source = lax.optimization_barrier(x.x)
        array = scale_shift(source, x.scale, x.shift, x.activation, x.dtype)
        return array if x.gate is None else array * x.gate

    if isinstance(x, Normalized):
        return by_platform(x, tpu=again, default=lambda x: x.array)
    return x


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def scale_shift(
    x: jax.Array, scale: jax.Array, shift: jax.Array, activation: str | None, dtype
) -> jax.Array:
    """Returns activation(x · scale + shift).

    For the backward pass, training keeps only the arguments. The activation is computed again,
    which is cheaper than reading it from memory.

    Args:
        x: [..., channels].
        scale: float32 [channels].
        shift: float32 [channels].
        activation: A name in ``ACTIVATIONS``, or None for the identity.
        dtype: The dtype of the result, in which the activation is computed.

    Returns:
        An array [..., channels] of this dtype.
    """
    on_cpu, default = (
        functools.partial(function, activation=activation, dtype=dtype)
        for function in (_forward_on_cpu, _forward)
    )
    return by_platform(x, scale, shift, cpu=on_cpu, default=default)


@scale_shift.defjvp
def _scale_shift_derivative(activation, dtype, primals, tangents):
    forward = functools.partial(_forward, activation=activation, dtype=dtype)
    dy = linear_call(
        lambda primals, tangents: jax.jvp(forward, primals, tangents)[1],
        functools.partial(_scale_shift_backward, activation, dtype),
        primals,
        tangents,
    )
    return scale_shift(*primals, activation, dtype), dy


def _scale_shift_backward(activation, dtype, primals, dy):
    x, scale, shift = primals
    on_cpu, default = (
        functools.partial(function, activation=activation, dtype=dtype)
        for function in (_before_activation_on_cpu, _before_activation)
    )
    dz = by_platform(x, scale, shift, dy, cpu=on_cpu, default=default)
    dscale, dshift = by_platform(x, dz, cpu=_sums_on_cpu, default=_sums)
    # Not isolated: XLA fuses it with the gradients that reach x through its mean and variance.
    return (dz * per_channel(scale, x.ndim)).astype(x.dtype), dscale, dshift


@jax.custom_jvp
def _gated(x: Value, gate: jax.Array) -> jax.Array:
    return jnp.asarray(x) * gate


@_gated.defjvp
def _gated_derivative(primals, tangents):
    def derivative(primals, tangents):
        (x, gate), (dx, dgate) = primals, tangents
        return dx * gate + jnp.asarray(x) * dgate

    dx, dgate = tangents
    dy = linear_call(derivative, _gated_backward, primals, (jnp.asarray(dx), dgate))
    return _gated(*primals), dy


def _gated_backward(primals, dy):
    x, gate = primals
    dgate = (dy * recomputed(x)).sum((1, 2), keepdims=True, dtype=jnp.float32)
    return dy * gate, dgate.astype(gate.dtype)


def _forward(x, scale, shift, *, activation: str | None, dtype):
    return activated(_scaled_and_shifted(x, scale, shift).astype(dtype), activation)


def _scaled_and_shifted(x, scale, shift):
    return x.astype(jnp.float32) * per_channel(scale, x.ndim) + per_channel(shift, x.ndim)


def _before_activation(x, scale, shift, dy, *, activation: str | None, dtype):
    """Returns the gradient by x · scale + shift, float32."""
    if activation is not None:
        z = _scaled_and_shifted(x, scale, shift).astype(dtype)
        (dy,) = jax.vjp(ACTIVATIONS[activation], z)[1](dy)
    return dy.astype(jnp.float32)


def _sums(x, dz):
    """Returns the gradients by scale and by shift."""
    axes = tuple(range(x.ndim - 1))
    return (dz * x.astype(jnp.float32)).sum(axes), dz.sum(axes)


_forward_on_cpu = isolated(_forward, static=("activation", "dtype"))
_before_activation_on_cpu = isolated(_before_activation, static=("activation", "dtype"))
_sums_on_cpu = isolated(_sums)
