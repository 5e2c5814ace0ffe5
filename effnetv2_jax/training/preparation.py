"""Makes ready in the background: batches, and everything else that the steps of a stage need."""

import dataclasses
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax
from jax.sharding import Mesh

from effnetv2_jax.progressive import Stage
from effnetv2_jax.training.mesh import Batch, abstract, shard_batch
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.step import StageScalars, TrainStep, stage_scalars
from effnetv2_jax.training.survival.agreement import Agreement

_AHEAD = 2
_POLL_SECONDS = 0.1


class Feed:
    """Takes batches from an iterable in a thread of its own, which begins at once.

    Waiting for a batch can be given up.

    Args:
        batches: The iterable.
    """

    def __init__(self, batches: Iterable[Batch]):
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        # A daemon, so that a stalled input does not keep the process alive.
        threading.Thread(target=self._take_all, args=(batches,), name="feed", daemon=True).start()

    def next(self, given_up: Callable[[], bool] = lambda: False) -> Batch | None:
        """Returns the next batch, or raises the exception that taking it raised.

        Args:
            given_up: A function called while there is no batch. If it returns True, the wait ends.

        Returns:
            None at the end of the batches, and if the wait was given up.
        """
        while not given_up():
            try:
                item = self._ready.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                raise item
            return item
        return None

    def close(self) -> None:
        """Takes no more batches."""
        self._closed.set()

    def _take_all(self, batches: Iterable[Batch]) -> None:
        try:
            for batch in batches:
                if not self._put(batch):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Batch | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False


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


@dataclasses.dataclass
class Preparation:
    """Prepares stages, each once and in the order in which they are asked for.

    Attributes:
        train_step: The training step from ``step.make_train_step``.
        mesh: The mesh that batches are split over.
        batches: A function of a stage and a step that returns the stage's batches from that step
            on. The work begins at the first ``next``.
        batch_shapes: A function of a stage that returns the shapes of its batches on the mesh, as
            ``mesh.abstract_batch`` does.
        state: The abstract state on the mesh.
        first_step: The step that the run goes on from.
    """

    train_step: TrainStep
    mesh: Mesh
    batches: Callable[[Stage, int], Iterator[Batch]]
    batch_shapes: Callable[[Stage], Batch]
    state: TrainState
    first_step: int

    def __post_init__(self):
        # Python runs one thread at a time, and threads that trace take turns with the steps of the
        # running stage. So a stage's step is traced first, and then the graph of its input is made.
        # Compilers and input pipelines work beside Python.
        self._pool = ThreadPoolExecutor(1, "preparation")
        self._beside = ThreadPoolExecutor(2, "preparation")
        self._update: Future[jax.stages.Compiled] | None = None
        self._stages: dict[Stage, Future[PreparedStage]] = {}

    def prepared(self, stage: Stage) -> Future[PreparedStage]:
        """Begins to prepare a stage, unless that was done before.

        Returns:
            The prepared stage, as soon as its programs and its first batch are there.
        """
        if stage not in self._stages:
            self._stages[stage] = self._pool.submit(self._prepare, stage)
        return self._stages[stage]

    def close(self) -> None:
        """Begins nothing more. A compiler cannot be stopped, but nothing waits for it."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._beside.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, stage: Stage) -> PreparedStage:
        shapes = Agreement(dict, self.mesh).attach_shapes(self.batch_shapes(stage))
        scalars = stage_scalars(stage.dropout_rate, stage.mixup_alpha, stage.cutmix_alpha)
        lowered = self.train_step.lower_gradients(self.state, shapes, scalars)
        feed = self._beside.submit(self._make_feed, stage)
        # The update knows nothing of images, so that all stages share it.
        self._update = self._update or self._beside.submit(
            lambda: self.train_step.lower_update(self.state).compile()
        )
        train_step = dataclasses.replace(
            self.train_step, gradients=lowered.compile(), update=self._update.result()
        )
        return PreparedStage(train_step, feed.result(), scalars)

    def _make_feed(self, stage: Stage) -> Feed:
        found = self.batches(stage, max(self.first_step, stage.first_step))
        batches = (shard_batch(batch, self.mesh) for batch in found)
        first = next(batches)
        assert abstract(first) == self.batch_shapes(stage), abstract(first)
        return Feed(itertools.chain([first], batches))
