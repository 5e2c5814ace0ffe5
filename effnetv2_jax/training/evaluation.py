"""Top-1, top-5 and loss over a whole split, every example counted once."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from effnetv2_jax.errors import UsageError
from effnetv2_jax.training.losses import targets_of
from effnetv2_jax.training.mesh import AXES, Batch, shard_batch
from effnetv2_jax.training.state import Apply, PyTree
from effnetv2_jax.training.step import Metrics, normalize

EvalStep = Callable[[PyTree, PyTree, Batch], Metrics]


def make_eval_step(
    apply: Apply,
    *,
    mesh: Mesh,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype=jnp.float32,
) -> EvalStep:
    """Builds the evaluation step; it compiles once per shape.

    Args:
        apply: from ``state.functional``.
        mesh: from ``make_mesh``.
        mean: of the input family.
        std: of the input family.
        dtype: of the images given to ``apply``.

    Returns:
        ``eval_step(params, batch_stats, batch) -> metrics``: sums over the batch of ``top1``,
        ``top5`` and ``loss`` (cross-entropy without smoothing), and ``count``. batch is as for the
        training step; of several labels, any is right. Examples with mask 0 or without a label
        count nothing.
    """

    def local_step(params: PyTree, batch_stats: PyTree, batch: Batch) -> Metrics:
        logits, _ = apply(
            params, batch_stats, normalize(batch["image"], mean, std, dtype), train=False
        )
        labels = batch["label"].reshape(len(logits), -1)  # [batch, labels]
        # The rank of the best of the right classes: ties count against it, so NaN is never right.
        scores = jnp.take_along_axis(logits, labels, axis=-1, mode="clip")
        own = jnp.max(jnp.where(labels >= 0, scores, -jnp.inf), axis=-1, keepdims=True)
        rank = jnp.sum(~(logits < own), axis=-1) - 1
        losses = optax.softmax_cross_entropy(logits, targets_of(labels, logits.shape[-1]))
        sums = {"top1": rank < 1, "top5": rank < 5, "loss": losses, "count": jnp.ones_like(losses)}
        # Images without any label, of which ReaL has some, are not counted (Beyer et al. 2020).
        # where, not a product: whatever a padded image gives must not reach the sum.
        counts = (batch["mask"] > 0) & (labels >= 0).any(axis=-1)
        masked = {name: jnp.where(counts, x, 0.0).sum() for name, x in sums.items()}
        return lax.psum(masked, AXES)

    return jax.jit(
        jax.shard_map(
            local_step,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(AXES)),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
    )


def evaluate(
    eval_step: EvalStep,
    params: PyTree,
    batch_stats: PyTree,
    batches: Iterable[Batch],
    mesh: Mesh,
) -> dict[str, float]:
    """Runs a whole split.

    Returns:
        ``top1`` and ``top5`` in 0 … 1, ``loss``, and ``count``, the number of examples.

    Raises:
        UsageError: where there is no example.
    """
    sums = [eval_step(params, batch_stats, shard_batch(batch, mesh)) for batch in batches]
    totals = jax.tree.map(lambda *values: float(sum(values)), *jax.device_get(sums)) if sums else {}
    count = totals.get("count", 0)
    if not count:
        raise UsageError("the evaluation split has no examples, at least 1 is needed")
    means = {name: totals[name] / count for name in ("top1", "top5", "loss")}
    return means | {"count": int(count)}
