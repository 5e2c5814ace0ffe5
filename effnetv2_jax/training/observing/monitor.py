"""Tells how a run is doing: in the log, in TensorBoard, in a bar, and in ``status.json``."""

import dataclasses
import math
from collections.abc import Mapping

from effnetv2_jax.progressive import Stage
from effnetv2_jax.runtime.caches import COUNTS
from effnetv2_jax.training.observing.history import Writer
from effnetv2_jax.training.observing.progress import Progress
from effnetv2_jax.training.observing.starting import seconds_since_start
from effnetv2_jax.training.observing.status import Status
from effnetv2_jax.training.survival.stalls import Watch


@dataclasses.dataclass(frozen=True)
class Monitor:
    """Everything that is told about a run while it goes on.

    Attributes:
        writer: The writer of metrics.
        progress: The bar, or lines of the log.
        status: The file ``status.json``.
        watch: The watch that reports stalls.
    """

    writer: Writer
    progress: Progress
    status: Status
    watch: Watch

    def close(self) -> None:
        """Ends the bar and the watch, and writes what is not written yet."""
        self.progress.stop()
        self.watch.stop()
        self.writer.close()

    def stage_begins(self, stage: Stage, num_stages: int) -> None:
        """Tells that a stage is prepared, with its settings."""
        self.watch.beat(f"preparing stage {stage.index + 1}")
        self.status.update(stage=stage.index + 1, image_size=stage.image_size)
        self.progress.message(
            f"stage {stage.index + 1} of {num_stages}: steps {stage.first_step} to "
            f"{stage.end_step}, {stage.image_size} px, "
            f"magnitude {stage.randaugment_magnitude:.3g}, mixup {stage.mixup_alpha:.3g}, "
            f"cutmix {stage.cutmix_alpha:.3g}, dropout {stage.dropout_rate:.3g}"
        )

    def first_step(self, stall: tuple[float, float] | None) -> None:
        """Tells that the first step of a stage is under way, after ``Starting.first_step``."""
        if stall is None:
            seconds, found = seconds_since_start(), f", {COUNTS}".removesuffix(", ")
            self.status.update(first_step_seconds=round(seconds, 1))
            self.progress.message(f"first step after {seconds:.1f} s{found}")
        else:
            self.status.update(stall_seconds=round(stall[0], 3))
            self.progress.message(
                f"first step after a stall of {stall[0]:.2f} s, {stall[1]:.1f} steps"
            )

    def trained(
        self, step: int, stage: Stage, metrics: Mapping[str, float], **fields: object
    ) -> None:
        """Writes a line of the log.

        Args:
            step: The last step that was made.
            stage: The stage to which it belongs.
            metrics: ``learning_rate``, ``images_per_second`` and ``bad_steps``, and ``loss`` and
                ``accuracy`` if a step was finite: those of the steps since the last line.
            **fields: Further fields of the status that changed.
        """
        settings = ("image_size", "randaugment_magnitude", "mixup_alpha", "cutmix_alpha")
        scalars = {
            **metrics,
            "stage": stage.index + 1,  # as people count
            **{name: getattr(stage, name) for name in (*settings, "dropout_rate")},
        }
        self.writer.write_scalars(step, {f"train/{name}": x for name, x in scalars.items()})
        loss, speed = metrics.get("loss"), metrics["images_per_second"]
        self.progress.update(step, stage, math.nan if loss is None else loss, speed)
        self.status.trained(step, stage, speed, loss=loss, **fields)

    def evaluated(
        self,
        name: str,
        step: int,
        stage: Stage,
        results: Mapping[str, float],
        *,
        scores: bool = True,
    ) -> None:
        """Tells the results of an evaluation.

        Args:
            name: The name of the evaluation, which prefixes its metrics.
            step: The number of steps done.
            stage: The stage of the last step.
            results: The metrics: ``top1`` and ``top5`` in 0 … 1, ``loss`` and ``count``.
            scores: True for the evaluation that scores the checkpoints.
        """
        self.writer.write_scalars(step, {f"{name}/{key}": x for key, x in results.items()})
        self.writer.flush()
        self.status.evaluated(name, step, results, scores=scores)
        where = f"end of stage {stage.index + 1}" if step == stage.end_step else f"step {step}"
        self.progress.message(
            f"{where}{'' if name == 'eval' else f', {name}'}: top-1 {100 * results['top1']:.2f} %, "
            f"top-5 {100 * results['top5']:.2f} %, loss {results['loss']:.4f}"
        )
