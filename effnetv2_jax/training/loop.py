"""The training loop: stage after stage, with metrics, evaluation and checkpoints."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import flax
import jax
import numpy as np
from clu import metric_writers, metrics, periodic_actions
from jax.sharding import Mesh

from effnetv2_jax.progressive import Stage
from effnetv2_jax.training.checkpoint import Checkpoints
from effnetv2_jax.training.mesh import Batch, abstract, shard_batch
from effnetv2_jax.training.progress import Progress
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.step import StageScalars, TrainStep


@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
    """Means over the examples of some steps."""

    loss: metrics.Average
    accuracy: metrics.Average

    @classmethod
    def of_sums(cls, sums: dict[str, np.ndarray]) -> "TrainMetrics":
        """From what the training step returns."""
        count = sums["count"]
        return cls.empty().replace(
            loss=metrics.Average(total=sums["loss"], count=count),
            accuracy=metrics.Average(total=sums["correct"], count=count),
        )


@dataclasses.dataclass(frozen=True)
class Loop:
    """What stays the same over a run.

    Attributes:
        train_step: from ``step.make_train_step``.
        mesh: that batches are split over.
        batches: of (stage, first step) → the stage's batches from that step on.
        evaluate: of (state) → metrics, called at the end of each stage.
        learning_rate: of (step) → rate, for the log.
        checkpoints: where the state is saved: at the end of each stage, and every so often.
        writer: takes the metrics.
        progress: shows them.
        log_every_steps: steps between two lines of the log.
        checkpoint_every_steps: steps between two checkpoints within a stage.
    """

    train_step: TrainStep
    mesh: Mesh
    batches: Callable[[Stage, int], Iterator[Batch]]
    evaluate: Callable[[TrainState], dict[str, float]]
    learning_rate: Callable[[int], float]
    checkpoints: Checkpoints
    writer: metric_writers.MetricWriter
    progress: Progress
    log_every_steps: int
    checkpoint_every_steps: int

    def run(self, state: TrainState, stages: Sequence[Stage]) -> TrainState:
        """Trains from the state's step to the end of the last stage; the state is donated."""
        shapes, first_step = abstract(state), int(state.step)
        remaining = [stage for stage in stages if stage.end_step > first_step]
        if not remaining:
            return state
        self.progress.start(first_step)
        background = ThreadPoolExecutor()
        try:
            update = background.submit(self.train_step.compile_update, shapes)
            preparations = (
                background.submit(self._prepare, stage, max(first_step, stage.first_step), shapes)
                for stage in remaining
            )
            coming = list(itertools.islice(preparations, 1))
            for stage in remaining:
                self._announce(stage, len(stages))
                started = time.perf_counter()
                batches = coming.pop().result()
                update.result()  # jit would compile it once more rather than wait
                self.progress.message(f"ready after {time.perf_counter() - started:.1f} s")
                # The next stage gets ready while this one trains.
                coming.extend(itertools.islice(preparations, 1))
                state = self._run_stage(state, stage, batches)
        finally:
            # A compiler cannot be stopped, but whoever stops the run need not wait for it here.
            background.shutdown(wait=False)
            self.progress.stop()
            self.writer.flush()
        return state

    def _announce(self, stage: Stage, num_stages: int) -> None:
        self.progress.message(
            f"stage {stage.index + 1} of {num_stages}: steps {stage.first_step} to "
            f"{stage.end_step}, {stage.image_size} px, "
            f"magnitude {stage.randaugment_magnitude:.3g}, mixup {stage.mixup_alpha:.3g}, "
            f"cutmix {stage.cutmix_alpha:.3g}, dropout {stage.dropout_rate:.3g}"
        )

    def _prepare(self, stage: Stage, first_step: int, state: TrainState) -> Iterator[Batch]:
        """Starts a stage's pipeline and compiles its program; the state is abstract.

        Returns:
            The stage's batches, on the devices.
        """
        batches = (shard_batch(batch, self.mesh) for batch in self.batches(stage, first_step))
        first = next(batches)
        self.train_step.compile_gradients(state, abstract(first), _scalars(stage))
        return itertools.chain([first], batches)

    def _run_stage(self, state: TrainState, stage: Stage, batches: Iterator[Batch]) -> TrainState:
        scalars = _scalars(stage)
        save = periodic_actions.PeriodicCallback(
            every_steps=self.checkpoint_every_steps,
            callback_fn=lambda step, t: self.checkpoints.save(state),
            execute_async=False,
        )
        interval = _Interval()
        steps = range(int(state.step) + 1, stage.end_step + 1)
        for step, batch in zip(steps, batches, strict=True):
            state, sums = self.train_step(state, batch, scalars)
            interval.add(sums)
            if step % self.log_every_steps == 0 or step == stage.end_step:
                self._log(step, stage, interval)
                interval = _Interval()
            if step < stage.end_step:
                save(step)
        results = self.evaluate(state)
        self.writer.write_scalars(
            stage.end_step, {f"eval/{name}": value for name, value in results.items()}
        )
        self.progress.message(
            f"end of stage {stage.index + 1}: top-1 {100 * results['top1']:.2f} %, "
            f"top-5 {100 * results['top5']:.2f} %, loss {results['loss']:.4f}"
        )
        # After the evaluation, so that a run killed during it evaluates again.
        self.checkpoints.save(state)
        self.writer.flush()
        return state

    def _log(self, step: int, stage: Stage, interval: "_Interval") -> None:
        values = interval.compute()
        images_per_second = interval.num_steps * stage.batch_size / interval.seconds()
        scalars = {
            "train/loss": values["loss"],
            "train/accuracy": values["accuracy"],
            "train/learning_rate": float(self.learning_rate(step - 1)),
            "train/stage": stage.index + 1,  # as people count
            "train/image_size": stage.image_size,
            "train/randaugment_magnitude": stage.randaugment_magnitude,
            "train/mixup_alpha": stage.mixup_alpha,
            "train/cutmix_alpha": stage.cutmix_alpha,
            "train/dropout_rate": stage.dropout_rate,
            "train/images_per_second": images_per_second,
        }
        self.writer.write_scalars(step, scalars)
        self.progress.update(step, stage, values["loss"], images_per_second)


def _scalars(stage: Stage) -> StageScalars:
    return {
        "dropout_rate": np.float32(stage.dropout_rate),
        "mixup_alpha": np.float32(stage.mixup_alpha),
        "cutmix_alpha": np.float32(stage.cutmix_alpha),
    }


class _Interval:
    """The steps between two lines of the log; their metrics stay on the device until asked for."""

    def __init__(self):
        self._sums: list[dict[str, jax.Array]] = []
        self._started = time.perf_counter()

    def add(self, sums: dict[str, jax.Array]) -> None:
        self._sums.append(sums)

    @property
    def num_steps(self) -> int:
        return len(self._sums)

    def compute(self) -> dict[str, float]:
        """Waits for the steps and returns their mean metrics."""
        steps: Iterable[TrainMetrics] = map(TrainMetrics.of_sums, jax.device_get(self._sums))
        merged = functools.reduce(lambda a, b: a.merge(b), steps)
        return {name: float(value) for name, value in merged.compute().items()}

    def seconds(self) -> float:
        return time.perf_counter() - self._started
