"""Equal blocks in a row as the body of one loop, of which a compiler sees one."""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from effnetv2_jax.models.efficientnet_specs import BlockSpec


def equal_runs(blocks: Sequence[BlockSpec]) -> list[range]:
    """The numbers of blocks that follow each other and differ in nothing but their parameters."""

    def shape(number: int) -> tuple[int, int, int]:
        block = blocks[number]
        return block.group, block.in_filters, block.stride

    groups = itertools.groupby(range(len(blocks)), key=shape)
    return [range(numbers[0], numbers[-1] + 1) for _, each in groups if (numbers := list(each))]


def scan(
    blocks: Sequence[nnx.Module],
    x: jax.Array,
    draws: jax.Array | None,
    *,
    survival_probs: Sequence[float],
    train: bool,
    remat_policy: Callable,
) -> jax.Array:
    """Calls equal blocks one after the other.

    Their parameters stay what they are, each block's own: the loop goes over a copy of them side
    by side, and what it says of their moving statistics is given back to each.

    Args:
        blocks: equal but for their parameters and their ``survival_prob``.
        x: [batch, height, width, filters], the input of the first and the shape of the output.
        draws: float32 [batch, blocks], as each takes it; None where nothing is random.
        survival_probs: of the blocks.
        train: as for a block.
        remat_policy: of ``jax.checkpoint``, under which the backward pass of training computes a
            block anew.

    Returns:
        What the last block returns.
    """
    graphdef, *_ = nnx.split(blocks[0], nnx.Param, nnx.BatchStat)
    states = [nnx.split(block, nnx.Param, nnx.BatchStat)[1:] for block in blocks]
    side_by_side = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def body(x, each):
        (params, batch_stats), survival_prob, draw = each
        block = nnx.merge(graphdef, params, batch_stats, copy=True)
        x = block(x, train=train, draw=draw, survival_prob=survival_prob)
        return x, nnx.state(block, nnx.BatchStat)

    if train:
        # A loop keeps what is computed anew from what is computed first by itself.
        body = jax.checkpoint(body, policy=remat_policy, prevent_cse=False)
    by_block = None if draws is None else draws.T
    x, batch_stats = lax.scan(body, x, (side_by_side, jnp.asarray(survival_probs), by_block))
    if train:
        for number, block in enumerate(blocks):
            nnx.update(block, jax.tree.map(functools.partial(_row, number=number), batch_stats))
    return x


def _row(leaf: jax.Array, *, number: int) -> jax.Array:
    return leaf[number]
