"""Counts steps whose loss or gradient was not finite; too many in a row end the run."""

import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from effnetv2_jax.training.observing.history import JsonLines


class BadSteps:
    """The steps that left the state as it was, because their numbers were not finite.

    Args:
        limit: The number of bad steps in a row that ends the run.
        in_a_row: The number of bad steps in a row that came just before this process began.
        file: The file to which each bad step is written with the examples of its batch; None
            writes nothing.
        examples: Returns the examples of a step's batch, in a form that JSON can hold.
    """

    def __init__(
        self,
        limit: int,
        in_a_row: int = 0,
        *,
        file: pathlib.Path | None = None,
        examples: Callable[[int], object] = lambda step: None,
    ):
        self.in_a_row = in_a_row
        self.total = 0
        self._limit = limit
        self._lines = None if file is None else JsonLines(file)
        self._examples = examples

    @property
    def too_many(self) -> bool:
        """True if the run has to end."""
        return self.in_a_row >= self._limit

    def see(self, step: int, sums: Mapping[str, Any]) -> None:
        """Looks at the next step.

        Args:
            step: Its number.
            sums: The sums that it returned.
        """
        if sums["finite"]:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.total += 1
        loss = float(sums["loss"] / sums["count"])
        what = "gradient" if math.isfinite(loss) else "loss"
        logging.warning(
            "step %d was left out: its %s is not finite (%d in a row, %d end the run)",
            *(step, what, self.in_a_row, self._limit),
        )
        if self._lines is not None:
            row = {"step": step, "time": round(time.time(), 3), "what": what, "loss": str(loss)}
            self._lines.append(row | {"examples": self._examples(step)})
