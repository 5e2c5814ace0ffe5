"""What a stage needs before its first step, made in the background: batches and programs."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from effnetv2_jax.progressive import Stage
from effnetv2_jax.training.feed import Feed
from effnetv2_jax.training.mesh import Batch, abstract, shard_batch
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.step import StageScalars, TrainStep
from effnetv2_jax.training.survival.agreement import Agreement

T = TypeVar("T")


class Preparation:
    """Gets stages ready.

    Python runs one thread at a time, whatever one does, and several take longer than one after the
    other: each waits for its turn after everything that does without Python. So one thread does
    all of it, traces and pipelines' graphs, in the order of need. Compilers, what reads compiled
    programs, and pipelines that run do without Python, and go on beside it.

    Args:
        train_step: from ``step.make_train_step``.
        mesh: that batches are split over.
        batches: of (stage, first step) → the stage's batches from that step on; begins with them
            at the first ``next``.
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
        self._python = ThreadPoolExecutor(1, "python")
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
            first_step = max(self._first_step, stage.first_step)
            batches = self._python.submit(self._batches, stage, first_step)
            # Knows nothing of images: one is for all stages.
            self._update = self._update or self._compiled(
                lambda: self._train_step.lower_update(self._state)
            )
            self._stages[stage] = self._workers.submit(
                self._ready, stage, batches, [gradients, self._update]
            )
        return self._stages[stage]

    def in_turn(self, function: Callable[[], T]) -> Future[T]:
        """Runs what takes Python when all that was begun before is traced."""
        return self._python.submit(function)

    def close(self) -> None:
        """Begins nothing more; a compiler cannot be stopped, but nobody need wait for it here."""
        self._python.shutdown(wait=False)
        self._workers.shutdown(wait=False)

    def _lower_gradients(self, stage: Stage) -> jax.stages.Lowered:
        batch = Agreement(dict, self._mesh).attach_shapes(self._batch_shapes(stage))
        return self._train_step.lower_gradients(self._state, batch, stage_scalars(stage))

    def _compiled(self, lower: Callable[[], jax.stages.Lowered]) -> Future[jax.stages.Compiled]:
        lowered = self._python.submit(lower)
        # jit finds it when arrays arrive.
        return self._workers.submit(lambda: lowered.result().compile())

    def _ready(
        self,
        stage: Stage,
        made: Future[Iterator[Batch]],
        programs: list[Future[jax.stages.Compiled]],
    ) -> Feed:
        batches = (shard_batch(batch, self._mesh) for batch in made.result())
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
