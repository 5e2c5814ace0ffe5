"""Top-1, top-5 and loss over a whole split, every example counted once."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from effnetv2_jax.models.kernels.compiler import compiler_options
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training.feed import Feed
from effnetv2_jax.training.losses import targets_of
from effnetv2_jax.training.mesh import AXES, Batch, shard_batch
from effnetv2_jax.training.state import Apply, PyTree
from effnetv2_jax.training.step import Metrics, normalize
from effnetv2_jax.training.survival.agreement import STEPS_BEHIND, Agreement

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
        count nothing. Where ``wishes`` are with them, so is their sum.
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
        if "wishes" in batch:
            masked["wishes"] = batch["wishes"].sum(axis=0)
        return lax.psum(masked, AXES)

    return jax.jit(
        jax.shard_map(
            local_step,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(AXES)),
            out_specs=PartitionSpec(),
            check_vma=False,
        ),
        compiler_options=compiler_options(mesh.devices.flat[0].platform),
    )


def evaluate(
    eval_step: EvalStep,
    params: PyTree,
    batch_stats: PyTree,
    batches: Iterable[Batch],
    mesh: Mesh,
    *,
    agreement: Agreement | None = None,
    moves: Callable[[], None] = lambda: None,
) -> dict[str, float] | None:
    """Runs a whole split.

    Args:
        eval_step: from ``make_eval_step``.
        params: of the model.
        batch_stats: of the model.
        batches: of the split, this process's part.
        mesh: that they are split over.
        agreement: of the processes, which may stop before the end; None where nobody will.
        moves: called after every batch.

    Returns:
        ``top1`` and ``top5`` in 0 … 1, ``loss``, and ``count``, the number of examples; None where
        it was agreed to stop.

    Raises:
        UsageError: where there is no example.
    """
    agreement = agreement or Agreement(dict, mesh)
    feed = Feed(shard_batch(batch, mesh) for batch in batches)
    sums: list[Metrics] = []
    stop = False
    while not stop and (batch := feed.next(agreement.given_up)):
        sums.append(eval_step(params, batch_stats, agreement.attach(batch)))
        moves()
        if len(sums) > STEPS_BEHIND:
            stop = agreement.agreed(jax.device_get(sums[-1 - STEPS_BEHIND]))["stop"]
    feed.close()
    if stop or agreement.given_up():
        return None
    fetched = jax.device_get(sums)
    totals = {
        name: float(sum(row[name] for row in fetched)) for name in ("top1", "top5", "loss", "count")
    }
    count = totals.pop("count")
    if not count:
        raise UsageError("the evaluation split has no examples, at least 1 is needed")
    return {name: total / count for name, total in totals.items()} | {"count": int(count)}
