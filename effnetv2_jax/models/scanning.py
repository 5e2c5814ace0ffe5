"""Equal blocks in a row as the body of one loop, of which a compiler sees one."""

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from effnetv2_jax.models.efficientnet_specs import BlockSpec

Draws = list[jax.Array | None]
"""For each block float32 [batch], as ``layers.stochastic_depth``; None where nothing is random."""


def equal_runs(blocks: Sequence[BlockSpec]) -> list[range]:
    """The numbers of blocks that follow each other and differ in nothing but their parameters."""

    def shape(number: int) -> tuple[int, int, int]:
        block = blocks[number]
        return block.group, block.in_filters, block.stride

    groups = itertools.groupby(range(len(blocks)), key=shape)
    return [range(numbers[0], numbers[-1] + 1) for _, each in groups if (numbers := list(each))]


def scan(
    blocks: Sequence[Any],
    x: jax.Array,
    draws: Draws,
    *,
    train: bool,
    remat_policy: Callable,
) -> jax.Array:
    """Calls equal blocks one after the other.

    Their parameters stay what they are, each block's own: the loop goes over a copy of them side
    by side, and what it says of their moving statistics is given back to each.

    Args:
        blocks: MBConvs or FusedMBConvs, equal but for their parameters and ``survival_prob``.
        x: [batch, height, width, filters], the input of the first and the shape of the output.
        draws: what each block takes.
        train: as for a block.
        remat_policy: of ``jax.checkpoint``, under which the backward pass of training computes a
            block anew.

    Returns:
        What the last block returns.
    """
    graphdef, *_ = nnx.split(blocks[0], nnx.Param, nnx.BatchStat)
    states = [nnx.split(block, nnx.Param, nnx.BatchStat)[1:] for block in blocks]
    survival_probs = [jnp.float32(block.survival_prob) for block in blocks]
    each = list(zip(states, survival_probs, draws, strict=True))

    def body(x, each):
        (params, batch_stats), survival_prob, draw = each
        block = nnx.merge(graphdef, params, batch_stats, copy=True)
        x = block(x, train=train, draw=draw, survival_prob=survival_prob)
        return x, nnx.state(block, nnx.BatchStat)

    if train:
        # A loop keeps what is computed anew from what is computed first by itself.
        body = jax.checkpoint(body, policy=remat_policy, prevent_cse=False)
    side_by_side = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    x, batch_stats = lax.scan(body, x, side_by_side)
    if train:
        for number, block in enumerate(blocks):
            nnx.update(block, jax.tree.map(operator.itemgetter(number), batch_stats))
    return x
