"""What a stage needs before its first step, made in the background: batches and programs."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import Mesh

from effnetv2_jax.progressive import Stage
from effnetv2_jax.training.agreement import Agreement
from effnetv2_jax.training.feed import Feed
from effnetv2_jax.training.mesh import Batch, abstract, shard_batch
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.step import StageScalars, TrainStep


class Preparation:
    """Gets stages ready.

    Python traces in one thread at a time, whatever one does: so that what is needed first is there
    first, one thread traces all programs in that order. Compilers, what reads compiled programs,
    and the pipeline mostly do without Python, and go on beside it.

    Args:
        train_step: from ``step.make_train_step``.
        mesh: that batches are split over.
        batches: of (stage, first step) → the stage's batches from that step on.
        batch_shapes: of (stage) → what they are on the mesh, as ``mesh.abstract_batch``.
        state: abstract, on the mesh.
        first_step: that the run goes on from.
    """

    def __init__(
        self,
        train_step: TrainStep,
        *,
        mesh: Mesh,
        batches: Callable[[Stage, int], Iterator[Batch]],
        batch_shapes: Callable[[Stage], Batch],
        state: TrainState,
        first_step: int,
    ):
        self._train_step = train_step
        self._mesh = mesh
        self._batches = batches
        self._batch_shapes = batch_shapes
        self._state = state
        self._first_step = first_step
        self._tracer = ThreadPoolExecutor(1, "tracer")
        self._workers = ThreadPoolExecutor(thread_name_prefix="preparation")
        self._update: Future[jax.stages.Compiled] | None = None
        self._stages: dict[Stage, Future[Feed]] = {}

    def prepared(self, stage: Stage) -> Future[Feed]:
        """Begins with a stage, unless that was done before.

        Returns:
            The stage's batches on the devices, when the first of them and the programs are there.
        """
        if stage not in self._stages:
            gradients = self._compiled(lambda: self._lower_gradients(stage))
            # Knows nothing of images: one is for all stages.
            self._update = self._update or self._compiled(
                lambda: self._train_step.lower_update(self._state)
            )
            self._stages[stage] = self._workers.submit(
                self._ready, stage, [gradients, self._update]
            )
        return self._stages[stage]

    def close(self) -> None:
        """Begins nothing more; a compiler cannot be stopped, but nobody need wait for it here."""
        self._tracer.shutdown(wait=False)
        self._workers.shutdown(wait=False)

    def _lower_gradients(self, stage: Stage) -> jax.stages.Lowered:
        batch = Agreement(dict, self._mesh).attach_shapes(self._batch_shapes(stage))
        return self._train_step.lower_gradients(self._state, batch, stage_scalars(stage))

    def _compiled(self, lower: Callable[[], jax.stages.Lowered]) -> Future[jax.stages.Compiled]:
        lowered = self._tracer.submit(lower)
        # jit finds it when arrays arrive.
        return self._workers.submit(lambda: lowered.result().compile())

    def _ready(self, stage: Stage, programs: list[Future[jax.stages.Compiled]]) -> Feed:
        first_step = max(self._first_step, stage.first_step)
        batches = (shard_batch(batch, self._mesh) for batch in self._batches(stage, first_step))
        first = next(batches)
        # Otherwise the program would be compiled once more, at the first step.
        assert abstract(first) == self._batch_shapes(stage), abstract(first)
        feed = Feed(itertools.chain([first], batches))
        for program in programs:
            program.result()
        return feed


def stage_scalars(stage: Stage) -> StageScalars:
    """What a stage's steps take beside its batches."""
    return {
        "dropout_rate": np.float32(stage.dropout_rate),
        "mixup_alpha": np.float32(stage.mixup_alpha),
        "cutmix_alpha": np.float32(stage.cutmix_alpha),
    }
