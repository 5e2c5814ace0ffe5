"""Activations, and what batch norm does before them: a scale and a shift for every channel."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from effnetv2_jax.models.kernels.isolation import isolated

ACTIVATIONS = {"silu": jax.nn.silu, "relu6": jax.nn.relu6}
"""By the names that specs give them."""


def activated(x: jax.Array, activation: str | None) -> jax.Array:
    """The activation of x: a name in ``ACTIVATIONS``; None for none."""
    return x if activation is None else ACTIVATIONS[activation](x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def scale_shift(
    x: jax.Array, scale: jax.Array, shift: jax.Array, activation: str | None, dtype
) -> jax.Array:
    """activation(x · scale + shift).

    Of it, training keeps x alone: for the backward pass the activation is computed anew, which is
    cheaper than to read it from memory.

    Args:
        x: [..., channels].
        scale: float32 [channels].
        shift: float32 [channels].
        activation: a name in ``ACTIVATIONS``; None for none.
        dtype: of the result, and in which the activation is computed.

    Returns:
        [..., channels], of dtype.
    """
    return lax.platform_dependent(
        x,
        scale,
        shift,
        cpu=functools.partial(_forward_on_cpu, activation=activation, dtype=dtype),
        default=functools.partial(_forward, activation=activation, dtype=dtype),
    )


def _scale_shift_forward(x, scale, shift, activation, dtype):
    return scale_shift(x, scale, shift, activation, dtype), (x, scale, shift)


def _scale_shift_backward(activation, dtype, residuals, dy):
    x, scale, shift = residuals
    dz = lax.platform_dependent(
        *(x, scale, shift, dy),
        cpu=functools.partial(_before_activation_on_cpu, activation=activation, dtype=dtype),
        default=functools.partial(_before_activation, activation=activation, dtype=dtype),
    )
    dscale, dshift = lax.platform_dependent(x, dz, cpu=_sums_on_cpu, default=_sums)
    # Left to be fused with what reaches x by way of its mean and its variance.
    return (dz * scale).astype(x.dtype), dscale, dshift


scale_shift.defvjp(_scale_shift_forward, _scale_shift_backward)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["x", "scale", "shift", "gate"],
    meta_fields=["activation", "dtype"],
)
@dataclasses.dataclass(frozen=True)
class Origin:
    """Where an activation comes from: what ``scale_shift`` takes, and a gate.

    On TPU, moving an activation to memory and back costs more than to compute it again in what
    reads it. So whatever needs it for a gradient is given its origin as well, of which training
    keeps x, which batch norm needs in any case.

    Attributes:
        x: as for ``scale_shift``.
        scale: likewise.
        shift: likewise.
        activation: likewise.
        dtype: likewise.
        gate: [batch, 1, 1, channels], by which the activation was multiplied; None for none.
    """

    x: jax.Array
    scale: jax.Array
    shift: jax.Array
    activation: str | None
    dtype: jnp.dtype
    gate: jax.Array | None = None

    def value(self) -> jax.Array:
        """The activation, without gate."""
        return scale_shift(self.x, self.scale, self.shift, self.activation, self.dtype)

    def anew(self, value: jax.Array) -> jax.Array:
        """The activation with its gate, in a backward pass.

        Args:
            value: as the forward pass had it, which is kept only where it is what is returned.
        """
        return lax.platform_dependent(
            self, value, tpu=Origin._computed_again, default=lambda _, value: value
        )

    def _computed_again(self, like: jax.Array) -> jax.Array:
        # Behind the barrier: XLA would find that it has it already, and keep it.
        x = lax.optimization_barrier(self.x)
        value = dataclasses.replace(self, x=x).value()
        return (value if self.gate is None else value * self.gate).astype(like.dtype)


@jax.custom_vjp
def gated(x: jax.Array, gate: jax.Array, origin: Origin | None) -> jax.Array:
    """x · gate.

    Args:
        x: [batch, height, width, channels].
        gate: [batch, 1, 1, channels].
        origin: of x, if it has one.
    """
    return x * gate


def _gated_forward(x, gate, origin):
    return gated(x, gate, origin), (x, gate, origin)


def _gated_backward(residuals, dy):
    x, gate, origin = residuals
    x = x if origin is None else origin.anew(x)
    dgate = (dy * x).sum((1, 2), keepdims=True, dtype=jnp.float32)
    return dy * gate, dgate.astype(gate.dtype), None


gated.defvjp(_gated_forward, _gated_backward)


def _forward(x, scale, shift, *, activation: str | None, dtype):
    return activated((x.astype(jnp.float32) * scale + shift).astype(dtype), activation)


def _before_activation(x, scale, shift, dy, *, activation: str | None, dtype):
    """The gradient by x · scale + shift, float32."""
    if activation is not None:
        z = (x.astype(jnp.float32) * scale + shift).astype(dtype)
        (dy,) = jax.vjp(ACTIVATIONS[activation], z)[1](dy)
    return dy.astype(jnp.float32)


def _sums(x, dz):
    """The gradients by scale and shift."""
    axes = tuple(range(x.ndim - 1))
    return (dz * x.astype(jnp.float32)).sum(axes), dz.sum(axes)


_forward_on_cpu = isolated(_forward, static=("activation", "dtype"))
_before_activation_on_cpu = isolated(_before_activation, static=("activation", "dtype"))
_sums_on_cpu = isolated(_sums)
