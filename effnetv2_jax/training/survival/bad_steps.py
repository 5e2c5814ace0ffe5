"""Counts steps whose loss or gradient was not finite; too many in a row end the run."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from effnetv2_jax.training.observing.history import JsonLines


@dataclasses.dataclass
class BadSteps:
    """The steps that left the state as it was, because their numbers were not finite.

    Attributes:
        limit: The number of bad steps in a row that ends the run.
        in_a_row: The number of bad steps in a row until now.
        file: The file to which each bad step is written with the examples of its batch; None
            writes nothing.
        examples: Returns the examples of a step's batch, in a form that JSON can hold.
        total: The number of bad steps of this process.
    """

    limit: int
    in_a_row: int = 0
    file: pathlib.Path | None = None
    examples: Callable[[int], object] = lambda step: None
    total: int = 0

    def __post_init__(self):
        self._lines = None if self.file is None else JsonLines(self.file)

    @property
    def too_many(self) -> bool:
        """True if the run has to end."""
        return self.in_a_row >= self.limit

    def see(self, step: int, sums: Mapping[str, Any]) -> None:
        """Looks at the sums of the next step."""
        if sums["finite"]:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.total += 1
        loss = float(sums["loss"] / sums["count"])
        what = "gradient" if math.isfinite(loss) else "loss"
        logging.warning(
            "step %d was left out: its %s is not finite (%d in a row, %d end the run)",
            *(step, what, self.in_a_row, self.limit),
        )
        if self._lines is not None:
            row = {"step": step, "time": round(time.time(), 3), "what": what, "loss": str(loss)}
            self._lines.append(row | {"examples": self.examples(step)})
