"""The answer of a network to every single example of a split, and how good it is."""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from effnetv2_jax.models.kernels.compiler import compiler_options
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training.evaluation import judge
from effnetv2_jax.training.mesh import AXES, Batch, shard_batch
from effnetv2_jax.training.preparation import Feed
from effnetv2_jax.training.state import Apply, PyTree
from effnetv2_jax.training.step import normalize
from effnetv2_jax.training.survival.agreement import STEPS_BEHIND

AnswerStep = Callable[[PyTree, PyTree, Batch], dict[str, jax.Array]]

TOP = 5
"""The number of classes that an answer has, or all if there are fewer."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers to the examples of a split that count, in the order of the split.

    Attributes:
        number: The number of the example in the split, [examples].
        label: The right class, int32 [examples]. Of several labels, the likeliest one.
        classes: The likeliest classes, the best first, int32 [examples, TOP].
        probabilities: Their probabilities, float32 [examples, TOP].
        own: The probability of the right class, float32 [examples].
        rank: The rank of the right class from 0, int32 [examples]. Ties count against it.
        loss: The cross-entropy without smoothing, float32 [examples].
    """

    number: np.ndarray
    label: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    own: np.ndarray
    rank: np.ndarray
    loss: np.ndarray

    def metrics(self) -> dict[str, float]:
        """Returns ``top1``, ``top5``, ``loss`` and ``count``, as ``evaluation.evaluate`` does."""
        means = {"top1": self.rank < 1, "top5": self.rank < 5, "loss": self.loss}
        return {name: float(x.mean(dtype=np.float64)) for name, x in means.items()} | {
            "count": len(self.number)
        }


def make_answer_step(
    apply: Apply,
    *,
    mesh: Mesh,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype=jnp.float32,
) -> AnswerStep:
    """Builds the step that answers a batch; it compiles once per shape.

    Args:
        apply, mesh, mean, std, dtype: See ``step.make_train_step``.

    Returns:
        ``answer_step(params, batch_stats, batch)``, which returns the fields of ``Answers`` except
        ``number``, and ``counts``, which is False for padding, for bad images and for images
        without a label. All are sharded along the first axis, as the batch is.
    """

    def local_step(params: PyTree, batch_stats: PyTree, batch: Batch) -> dict[str, jax.Array]:
        logits, _ = apply(
            params, batch_stats, normalize(batch["image"], mean, std, dtype), train=False
        )
        rank, loss, counts = judge(logits, batch)
        probabilities = jax.nn.softmax(logits)
        labels = batch["label"].reshape(len(logits), -1)
        owns = jnp.take_along_axis(probabilities, labels, axis=-1, mode="clip")
        best = jnp.where(labels >= 0, owns, -1.0).argmax(axis=-1)[:, None]
        top, classes = lax.top_k(probabilities, min(TOP, logits.shape[-1]))
        return {
            "label": jnp.take_along_axis(labels, best, axis=-1)[:, 0],
            "classes": classes,
            "probabilities": top,
            "own": jnp.take_along_axis(owns, best, axis=-1)[:, 0],
            "rank": rank,
            "loss": loss,
            "counts": counts,
        }

    return jax.jit(
        jax.shard_map(
            local_step,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(AXES)),
            out_specs=PartitionSpec(AXES),
            check_vma=False,
        ),
        compiler_options=compiler_options(mesh.devices.flat[0].platform),
    )


def collect(
    answer_step: AnswerStep,
    params: PyTree,
    batch_stats: PyTree,
    batches: Iterable[Batch],
    mesh: Mesh,
    *,
    first: int = 0,
) -> Answers:
    """Answers a whole split; every process gets all answers.

    Args:
        answer_step: The step from ``make_answer_step``.
        params: The parameters of the model.
        batch_stats: The batch statistics of the model.
        batches: This process's part of the batches of the split. All processes have the same number
            of batches.
        mesh: The mesh that batches are split over.
        first: The number in the split of this process's first example; the others follow it.

    Raises:
        UsageError: If there is no example.
    """
    feed = Feed(shard_batch(batch, mesh) for batch in batches)
    begun, done = [], []
    while batch := feed.next():
        begun.append(answer_step(params, batch_stats, batch))
        if len(begun) > STEPS_BEHIND:
            done.append(jax.tree.map(_own_rows, begun.pop(0)))
    feed.close()
    done += [jax.tree.map(_own_rows, rows) for rows in begun]
    columns = {name: np.concatenate([rows[name] for rows in done]) for name in done[0]}
    columns["number"] = first + np.arange(len(columns["counts"]), dtype=np.int32)
    if jax.process_count() > 1:
        gathered = multihost_utils.process_allgather(columns)
        columns = {name: x.reshape(-1, *x.shape[2:]) for name, x in gathered.items()}
    counts = columns.pop("counts")
    if not counts.any():
        raise UsageError("the evaluation split has no examples, at least 1 is needed")
    return Answers(**{name: column[counts] for name, column in columns.items()})


def _own_rows(array: jax.Array) -> np.ndarray:
    """Returns the rows of a sharded array that are on this process's devices, in their order."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([shard.data for shard in shards])
