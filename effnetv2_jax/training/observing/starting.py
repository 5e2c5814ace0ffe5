"""Measures how long a run takes to its first step, and how long it stalls between stages."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator

_IMPORTED = time.monotonic()


class Starting:
    """A stopwatch for the stalls between stages.

    A stall begins when the results of a stage's last step have arrived. It ends when the first step
    of the next stage is handed to the devices. The checkpoint and the evaluations in between do not
    count.
    """

    def __init__(self):
        self._began = self._ended = self._work = 0.0
        self._steps = 0
        self._step_seconds: float | None = None

    def first_step(self, steps: int) -> tuple[float, float] | None:
        """Notes that the first step of a stage is under way.

        Args:
            steps: The number of steps that this process makes in the stage.

        Returns:
            The stall before the step in seconds, and the same in steps of the stage before. None
            for a process's first stage.
        """
        now = time.perf_counter()
        stall = now - self._ended - self._work
        self._began, self._work, self._steps = now, 0.0, steps
        return None if self._step_seconds is None else (stall, stall / self._step_seconds)

    def last_step(self) -> None:
        """Notes that the last step of a stage has ended."""
        self._ended = time.perf_counter()
        self._step_seconds = (self._ended - self._began) / self._steps

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Keeps the time of its block out of the stall."""
        started = time.perf_counter()
        yield
        self._work += time.perf_counter() - started


def seconds_since_start() -> float:
    """Returns the age of this process, or the time since our import if the age is not known."""
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        # The name, in brackets, may hold spaces; the 22nd field is the 20th after it.
        stat = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(stat[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    return time.monotonic() - _IMPORTED
