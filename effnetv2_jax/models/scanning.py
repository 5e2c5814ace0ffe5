"""Equal blocks in a row as one loop, so that the compiler sees their code once."""

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from effnetv2_jax.models.efficientnet_specs import BlockSpec
from effnetv2_jax.models.layers import modes, trains

Draws = list[jax.Array | None]
"""Uniform numbers for each block, float32 [batch], as ``layers.stochastic_depth`` takes them.

None if nothing is random.
"""


def equal_runs(blocks: Sequence[BlockSpec]) -> list[range]:
    """Returns ranges of the blocks that follow each other and differ only in their parameters."""

    def shape(number: int) -> tuple[int, int, int, int]:
        block = blocks[number]
        return block.group, block.in_filters, block.stride, block.dilation

    groups = itertools.groupby(range(len(blocks)), key=shape)
    return [range(numbers[0], numbers[-1] + 1) for _, each in groups if (numbers := list(each))]


def scan(
    blocks: Sequence[Any],
    x: jax.Array,
    draws: Draws,
    *,
    train: bool | None,
    remat_policy: Callable,
) -> jax.Array:
    """Calls equal blocks one after the other.

    Each block keeps its own parameters. The loop runs over a stacked copy of them, and the moving
    statistics that it computes are given back to each block. With ``train=None``, blocks in
    different modes are in different loops.

    Args:
        blocks: MBConvs or FusedMBConvs that differ only in parameters and ``survival_prob``.
        x: The input of the first block, [batch, height, width, filters]; the output has its shape.
        draws: The random numbers for each block, or None for each.
        train: The mode, as for a block.
        remat_policy: The policy of ``jax.checkpoint`` by which the backward pass recomputes a
            block.

    Returns:
        The output of the last block.
    """
    if train is None:
        by_modes = itertools.groupby(range(len(blocks)), key=lambda number: modes(blocks[number]))
        loops = [list(numbers) for _, numbers in by_modes]
        if len(loops) > 1:
            for loop in loops:
                part = slice(loop[0], loop[-1] + 1)
                x = scan(blocks[part], x, draws[part], train=None, remat_policy=remat_policy)
            return x

    training = trains(blocks[0], train)
    graphdef, *_ = nnx.split(blocks[0], nnx.Param, nnx.BatchStat)
    states = [nnx.split(block, nnx.Param, nnx.BatchStat)[1:] for block in blocks]
    survival_probs = [jnp.float32(block.survival_prob) for block in blocks]
    each = list(zip(states, survival_probs, draws, strict=True))

    def body(x, each):
        (params, batch_stats), survival_prob, draw = each
        block = nnx.merge(graphdef, params, batch_stats, copy=True)
        x = block(x, train=train, draw=draw, survival_prob=survival_prob)
        return x, nnx.state(block, nnx.BatchStat)

    if training:
        # Inside a loop, XLA does not merge the recomputation with the first computation.
        body = jax.checkpoint(body, policy=remat_policy, prevent_cse=False)
    side_by_side = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    x, batch_stats = lax.scan(body, x, side_by_side)
    if training:
        for number, block in enumerate(blocks):
            nnx.update(block, jax.tree.map(operator.itemgetter(number), batch_stats))
    return x
