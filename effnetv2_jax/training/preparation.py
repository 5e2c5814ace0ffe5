"""Prepares a stage in the background: its first batches, and the compiled programs of its step."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax
from jax.sharding import Mesh

from effnetv2_jax.progressive import Stage
from effnetv2_jax.training.build import stage_scalars
from effnetv2_jax.training.feed import Feed
from effnetv2_jax.training.mesh import Batch, abstract, shard_batch
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.step import StageScalars, TrainStep
from effnetv2_jax.training.survival.agreement import Agreement


@dataclasses.dataclass(frozen=True)
class PreparedStage:
    """Everything the steps of a stage need beside the state.

    Attributes:
        train_step: The training step, compiled for the stage's batches.
        feed: The stage's batches on the devices.
        scalars: The numbers of the stage that the step takes.
    """

    train_step: TrainStep
    feed: Feed
    scalars: StageScalars


class Preparation:
    """Prepares stages, each once and in the order in which they are asked for.

    Args:
        train_step: The training step from ``step.make_train_step``.
        mesh: The mesh that batches are split over.
        batches: A function of a stage and a step that returns the stage's batches from that step
            on. The work begins at the first ``next``.
        batch_shapes: A function of a stage that returns the shapes of its batches on the mesh, as
            ``mesh.abstract_batch`` does.
        state: The abstract state on the mesh.
        first_step: The step that the run goes on from.
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
        # A stage takes two threads, the update one; two stages are prepared at a time.
        self._pool = ThreadPoolExecutor(5, "preparation")
        self._update: Future[jax.stages.Compiled] | None = None
        self._stages: dict[Stage, Future[PreparedStage]] = {}

    def prepared(self, stage: Stage) -> Future[PreparedStage]:
        """Begins to prepare a stage, unless that was done before.

        Returns:
            The prepared stage, as soon as its programs and its first batch are there.
        """
        if stage not in self._stages:
            feed = self._pool.submit(self._make_feed, stage)
            # The update knows nothing of images, so that all stages share it.
            self._update = self._update or self._pool.submit(
                lambda: self._train_step.lower_update(self._state).compile()
            )
            self._stages[stage] = self._pool.submit(self._prepare, stage, feed, self._update)
        return self._stages[stage]

    def close(self) -> None:
        """Begins nothing more. A compiler cannot be stopped, but nothing waits for it."""
        self._pool.shutdown(wait=False)

    def _make_feed(self, stage: Stage) -> Feed:
        found = self._batches(stage, max(self._first_step, stage.first_step))
        batches = (shard_batch(batch, self._mesh) for batch in found)
        first = next(batches)
        assert abstract(first) == self._batch_shapes(stage), abstract(first)
        return Feed(itertools.chain([first], batches))

    def _prepare(
        self, stage: Stage, feed: Future[Feed], update: Future[jax.stages.Compiled]
    ) -> PreparedStage:
        batch = Agreement(dict, self._mesh).attach_shapes(self._batch_shapes(stage))
        scalars = stage_scalars(stage.dropout_rate, stage.mixup_alpha, stage.cutmix_alpha)
        gradients = self._train_step.lower_gradients(self._state, batch, scalars).compile()
        step = dataclasses.replace(self._train_step, gradients=gradients, update=update.result())
        return PreparedStage(step, feed.result(), scalars)
