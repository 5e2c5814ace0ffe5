"""The training state, which is one pytree, and a model as a pure function."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from effnetv2_jax.models.layers import trains

PyTree = Any
# (params, batch_stats, images, *, train, key, dropout_rate, index) -> (logits, new batch_stats)
Apply = Callable[..., tuple[jax.Array, PyTree]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a run carries from step to step; nothing in it is random.

    Attributes:
        step: The number of steps done, an int32 scalar.
        params: The parameters, a nested dict of float32 arrays.
        batch_stats: Batch norm's moving statistics, a nested dict of float32 arrays.
        opt_state: The state of the optimizer.
        ema_params: The moving average of ``params``, used for evaluation.
        ema_batch_stats: The moving average of ``batch_stats``, used for evaluation.
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
        model: An NNX module that is called with ``(images, train=, rngs=, dropout_rate=, index=)``.
            It may be abstract (``nnx.eval_shape``). Some of its layers may be frozen: after
            ``model.train(); model.stem.eval()``, training leaves the stem's statistics alone.

    Returns:
        ``apply``, ``params`` and ``batch_stats``. ``apply(params, batch_stats, images, *, train,
        key=None, dropout_rate=None, index=None)`` returns float32 logits [batch, classes] and the
        new batch statistics; training needs ``key``.
    """
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat, nnx.RngState)
    params, batch_stats, rng_state = states
    has_modes = trains(model, None)
    # The model's own keys are never used here: a placeholder keeps them out of the program.
    rng_state = jax.eval_shape(lambda: rng_state)

    def apply(params, batch_stats, images, *, train, key=None, dropout_rate=None, index=None):
        # copy=True: fresh variables that belong to the trace this is called in.
        model = nnx.merge(graphdef, params, batch_stats, rng_state, copy=True)
        rngs = None if key is None else nnx.Rngs(dropout=key)
        # None lets each layer be as ``.train()`` and ``.eval()`` left it; True is for a new model.
        mode = None if train and has_modes else train
        logits = model(images, train=mode, rngs=rngs, dropout_rate=dropout_rate, index=index)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    return apply, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


# Jitted, this is one program instead of two for every shape.
@functools.partial(jax.jit, static_argnames="optimizer")
def create_state(
    params: PyTree, batch_stats: PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
    """Returns the state before the first step; moving averages start at the initial values.

    Args:
        params: The parameters, as ``functional`` returns them.
        batch_stats: The batch statistics, as ``functional`` returns them.
        optimizer: The optimiser, from ``make_optimizer`` or optax.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        # Copies, because the step donates each buffer.
        ema_params=jax.tree.map(jnp.copy, params),
        ema_batch_stats=jax.tree.map(jnp.copy, batch_stats),
    )


def is_finite(state: TrainState) -> bool:
    """Returns True if all weights and statistics on this process's devices are finite."""
    trees = (state.params, state.batch_stats, state.ema_params, state.ema_batch_stats)
    return all(
        np.isfinite(shard.data).all()
        for x in jax.tree.leaves(trees)
        for shard in (x.addressable_shards[:1] if x.is_fully_replicated else x.addressable_shards)
    )
