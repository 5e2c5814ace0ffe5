"""``workdir/status.json``: how a run is doing, for dashboards and scripts."""

import json
import pathlib
import threading
import time
from collections.abc import Mapping, Sequence

from absl import logging

from effnetv2_jax.progressive import Stage
from effnetv2_jax.runtime.files import write_atomically

_FIELDS = (
    *("state", "step", "total_steps", "stage", "stages", "image_size", "images_per_second", "loss"),
    *("last_checkpoint", "last_accuracy", "evaluations", "bad_steps", "seconds_left"),
    *("first_step_seconds", "stall_seconds"),
)


class Status:
    """The file, rewritten whole at every change.

    Its fields: ``state`` (starting, training, evaluating, stalled, stopped, failed or finished),
    ``step`` and ``total_steps``, ``stage`` (from 1) and ``stages``, ``image_size`` in px,
    ``images_per_second``, ``loss``, ``last_checkpoint`` (the step of the newest on the disk),
    ``last_accuracy`` (top-1 of the last evaluation that scores checkpoints, 0 … 1),
    ``evaluations`` (name → ``step``, ``top1``, ``top5``, ``loss`` and ``count`` of the last
    evaluation of that name in this process), ``bad_steps`` (since the start of this process),
    ``seconds_left`` (an estimate, from the speed of the last steps and the area of the images still
    to come), ``first_step_seconds`` (from the start of the process to its first step),
    ``stall_seconds`` (between the last two stages, see ``starting``), ``time`` (Unix, s, of the
    last change). Unknown is null.

    Args:
        workdir: of the run; None for a status that nobody reads.
        stages: of the run.
    """

    def __init__(self, workdir: pathlib.Path | None, stages: Sequence[Stage]):
        self._path = None if workdir is None else workdir / "status.json"
        self._stages = stages
        self._fields: dict[str, object] = dict.fromkeys(_FIELDS)
        self._evaluations: dict[str, object] = {}
        self._fields |= {"total_steps": stages[-1].end_step, "stages": len(stages)}
        self._told = False
        self._lock = threading.Lock()

    def update(self, **fields: object) -> None:
        """Changes some fields; any thread may."""
        with self._lock:
            self._fields |= fields
            if self._path is not None:
                self._write(self._path)

    def _write(self, path: pathlib.Path) -> None:
        text = json.dumps(self._fields | {"time": round(time.time(), 3)}, indent=2)
        try:
            write_atomically(path, text + "\n")
            self._told = False
        except OSError as error:
            if not self._told:  # a full disk is full for a while
                logging.warning("%s cannot be written: %s", path, error.strerror)
            self._told = True

    def trained(self, step: int, stage: Stage, images_per_second: float, **fields: object) -> None:
        """After some steps.

        Args:
            step: that they came to.
            stage: that it is in.
            images_per_second: of these steps.
            fields: others that changed.
        """
        self.update(
            state="training",
            step=step,
            stage=stage.index + 1,
            image_size=stage.image_size,
            images_per_second=round(images_per_second, 1),
            seconds_left=round(seconds_left(self._stages, step, stage, images_per_second)),
            **fields,
        )

    def evaluated(
        self, name: str, step: int, results: Mapping[str, float], *, scores: bool
    ) -> None:
        """Takes the results of an evaluation.

        Args:
            name: The name of the evaluation.
            step: The number of steps done.
            results: The metrics.
            scores: True for the evaluation that scores the checkpoints.
        """
        self._evaluations[name] = {"step": step, **results}
        accuracy = {"last_accuracy": results["top1"]} if scores else {}
        self.update(evaluations=self._evaluations, **accuracy)


def seconds_left(
    stages: Sequence[Stage], step: int, stage: Stage, images_per_second: float
) -> float:
    """An estimate: an image costs what its area does, against those of the stage that was measured.

    Args:
        stages: of the run.
        step: that it has come to.
        stage: where the speed was measured.
        images_per_second: there.
    """
    area = sum(
        max(other.end_step - max(other.first_step, step), 0)
        * other.batch_size
        * other.image_size**2
        for other in stages
    )
    return area / stage.image_size**2 / images_per_second


def read_status(workdir: str | pathlib.Path) -> dict[str, object]:
    """The fields of a run's status; raises OSError where there is none."""
    return json.loads((pathlib.Path(workdir).expanduser() / "status.json").read_text())
