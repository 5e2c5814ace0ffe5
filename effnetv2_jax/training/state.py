"""The training state, one pytree, and the functional form of a model that it goes with."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

PyTree = Any
# (params, batch_stats, images, *, train, key, dropout_rate, index) -> (logits, new batch_stats)
Apply = Callable[..., tuple[jax.Array, PyTree]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a run carries from step to step; nothing random is in it.

    Attributes:
        step: int32 scalar, the number of steps done.
        params: nested dict of float32 arrays.
        batch_stats: nested dict of float32 arrays, batch norm's moving statistics.
        opt_state: the optimiser's.
        ema_params: moving average of params, used for evaluation.
        ema_batch_stats: moving average of batch_stats, likewise.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema_params: PyTree
    ema_batch_stats: PyTree


def functional(model: nnx.Module) -> tuple[Apply, PyTree, PyTree]:
    """Splits a model into a pure function and its parameters.

    Args:
        model: an NNX module that is called with ``(images, train=, rngs=, dropout_rate=, index=)``;
            may be abstract (``nnx.eval_shape``).

    Returns:
        ``apply``, ``params`` and ``batch_stats``. ``apply(params, batch_stats, images, *, train,
        key=None, dropout_rate=None, index=None)`` returns float32 logits [batch, classes] and the
        new batch_stats; ``key`` is needed in training.
    """
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat, nnx.RngState)
    params, batch_stats, rng_state = states
    # The model's own keys are never used here: a placeholder keeps them out of the program.
    rng_state = jax.eval_shape(lambda: rng_state)

    def apply(params, batch_stats, images, *, train, key=None, dropout_rate=None, index=None):
        # copy=True: fresh variables that belong to the trace this is called in.
        model = nnx.merge(graphdef, params, batch_stats, rng_state, copy=True)
        rngs = None if key is None else nnx.Rngs(dropout=key)
        logits = model(images, train=train, rngs=rngs, dropout_rate=dropout_rate, index=index)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    return apply, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


# One program instead of two for every shape, and traced once.
@functools.partial(jax.jit, static_argnames="optimizer")
def create_state(
    params: PyTree, batch_stats: PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step; the moving averages start at the initial values."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        # Buffers of their own: the step donates each of them.
        ema_params=jax.tree.map(jnp.copy, params),
        ema_batch_stats=jax.tree.map(jnp.copy, batch_stats),
    )
