"""Top-1, top-5 and loss over a whole split; every example counts once."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from effnetv2_jax.models.kernels.compiler import compiler_options
from effnetv2_jax.progressive import Stage
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training.losses import targets_of
from effnetv2_jax.training.mesh import AXES, Batch, shard_batch
from effnetv2_jax.training.preparation import Feed
from effnetv2_jax.training.state import Apply, PyTree, TrainState
from effnetv2_jax.training.step import Metrics, normalize
from effnetv2_jax.training.survival.agreement import STEPS_BEHIND, Agreement

EvalStep = Callable[[PyTree, PyTree, Batch], Metrics]

WEIGHTS = ("ema", "raw")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation that a run makes again and again while it trains.

    Attributes:
        name: The prefix of its metrics, such as ``eval`` in ``eval/top1``.
        data: The name of the data set.
        split: The split of the data set.
        image_size: The side of the images in px.
        batch_size: The number of images of a batch, over all devices.
        weights: ``ema`` for the moving averages of parameters and batch statistics, ``raw`` for the
            trained ones.
        every_steps: The number of steps between two evaluations; the run's last step has one as
            well. 0 means one at the end of every stage.
    """

    name: str
    data: str
    split: str
    image_size: int
    batch_size: int
    weights: str = "ema"
    every_steps: int = 0

    def is_due(self, step: int, stages: Sequence[Stage]) -> bool:
        """Returns True if the evaluation follows a step.

        Args:
            step: The number of steps done.
            stages: All stages of the run.
        """
        if self.every_steps and step != stages[-1].end_step:
            return step % self.every_steps == 0
        return any(step == stage.end_step for stage in stages)

    @property
    def parts(self) -> tuple[str, str]:
        """The fields of ``TrainState`` with the parameters and batch statistics it evaluates."""
        if self.weights == "ema":
            return "ema_params", "ema_batch_stats"
        return "params", "batch_stats"

    def choose_weights(self, state: TrainState) -> tuple[PyTree, PyTree]:
        """Returns the parameters and batch statistics that are evaluated."""
        params, batch_stats = self.parts
        return getattr(state, params), getattr(state, batch_stats)


def make_eval_step(
    apply: Apply,
    *,
    mesh: Mesh,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype=jnp.float32,
) -> EvalStep:
    """Builds the evaluation step, which compiles once per shape.

    Args:
        apply, mesh, mean, std, dtype: See ``step.make_train_step``.

    Returns:
        ``eval_step(params, batch_stats, batch) -> metrics``. A batch is as for the training step;
        if an example has several labels, any of them is right. The metrics are float32 sums over
        the batch: ``top1``, ``top5``, ``loss`` (cross-entropy without smoothing) and ``count``.
        Examples with mask 0 or without a label do not count. If the batch has ``wishes``, the
        metrics have their sum over the devices.
    """

    def local_step(params: PyTree, batch_stats: PyTree, batch: Batch) -> Metrics:
        logits, _ = apply(
            params, batch_stats, normalize(batch["image"], mean, std, dtype), train=False
        )
        rank, losses, counts = judge(logits, batch)
        sums = {"top1": rank < 1, "top5": rank < 5, "loss": losses, "count": jnp.ones_like(losses)}
        # This is a where and not a product: NaN in a padded image must not reach the sum.
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


def judge(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compares a network's outputs with the labels of a batch.

    Args:
        logits: The outputs, float32 [batch, classes].
        batch: The batch, of which ``label`` and ``mask`` are used.

    Returns:
        The rank of the best of the right classes from 0, int32 [batch]; the cross-entropy without
        smoothing, float32 [batch]; and True for the examples that count, bool [batch].
    """
    labels = batch["label"].reshape(len(logits), -1)  # [batch, labels]
    # Ties count against the right class, so NaN is never right.
    scores = jnp.take_along_axis(logits, labels, axis=-1, mode="clip")
    own = jnp.max(jnp.where(labels >= 0, scores, -jnp.inf), axis=-1, keepdims=True)
    rank = jnp.sum(~(logits < own), axis=-1) - 1
    losses = optax.softmax_cross_entropy(logits, targets_of(labels, logits.shape[-1]))
    # Images without any label, of which ReaL has some, do not count (Beyer et al. 2020).
    return rank, losses, (batch["mask"] > 0) & (labels >= 0).any(axis=-1)


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
    """Evaluates a whole split.

    Args:
        eval_step: The evaluation step, from ``make_eval_step``.
        params: The parameters of the model.
        batch_stats: The batch statistics of the model.
        batches: This process's part of the batches of the split.
        mesh: The mesh that batches are split over.
        agreement: The agreement of the processes, which may stop before the end. None means that
            nothing stops the evaluation.
        moves: A function called after every batch.

    Returns:
        ``top1`` and ``top5`` in 0 … 1, ``loss``, and ``count``, the number of examples. None if the
        processes agreed to stop.

    Raises:
        UsageError: If there is no example.
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
