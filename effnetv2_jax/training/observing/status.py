"""``workdir/status.json``: how a run is doing, for dashboards and scripts."""

import json
import pathlib
import threading
import time
from collections.abc import Mapping, Sequence

from absl import logging

from effnetv2_jax.progressive import Stage
from effnetv2_jax.runtime.errors import Stopped
from effnetv2_jax.runtime.files import write_atomically

_FIELDS = (
    *("state", "step", "total_steps", "stage", "stages", "image_size", "images_per_second", "loss"),
    *("last_checkpoint", "last_accuracy", "evaluations", "bad_steps", "seconds_left"),
    *("first_step_seconds", "stall_seconds"),
)


class Status:
    """The file ``status.json``, which is replaced as a whole at every change.

    A run is the block of ``with Status(…) as status:``.

    docs/resuming.md lists its fields; what is not known yet is null.

    Args:
        workdir: The folder of the run; None writes nothing.
        stages: The stages of the run.
    """

    def __init__(self, workdir: pathlib.Path | None, stages: Sequence[Stage]):
        self._path = None if workdir is None else workdir / "status.json"
        self._stages = stages
        self._fields: dict[str, object] = dict.fromkeys(_FIELDS)
        self._fields |= {"total_steps": stages[-1].end_step, "stages": len(stages)}
        self._evaluations: dict[str, Mapping[str, float]] = {}
        self._failing = False
        self._lock = threading.Lock()

    def __enter__(self) -> "Status":
        """The run is starting. When the block ends, the state says how."""
        self.update(state="starting")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.update(state="finished", seconds_left=0)
        else:
            self.update(state="stopped" if isinstance(error, Stopped) else "failed")

    def update(self, **fields: object) -> None:
        """Changes some fields. Any thread may call this."""
        with self._lock:
            self._fields |= fields
            if self._path is None:
                return
            text = json.dumps(self._fields | {"time": round(time.time(), 3)}, indent=2)
            try:
                write_atomically(self._path, text + "\n")
                self._failing = False
            except OSError as error:
                if not self._failing:  # A full disk stays full for a while.
                    logging.warning("%s cannot be written: %s", self._path, error.strerror)
                self._failing = True

    def trained(self, step: int, stage: Stage, images_per_second: float, **fields: object) -> None:
        """Changes the fields that steps of training change, up to ``step`` of ``stage``."""
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
        """Replaces the results of one evaluation; ``scores`` if it scores the checkpoints."""
        self._evaluations[name] = {"step": step, **results}
        accuracy = {"last_accuracy": results["top1"]} if scores else {}
        self.update(evaluations=self._evaluations, **accuracy)


def seconds_left(
    stages: Sequence[Stage], step: int, stage: Stage, images_per_second: float
) -> float:
    """Estimates how long a run still takes after a step, from the speed measured in a stage.

    An image costs in proportion to its area.
    """
    area = sum(
        max(other.end_step - max(other.first_step, step), 0)
        * other.batch_size
        * other.image_size**2
        for other in stages
    )
    return area / stage.image_size**2 / images_per_second
