"""How long a run takes to its first step, and how long it stands still between stages."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator

_IMPORTED = time.monotonic()


class Starting:
    """Watches the loop.

    The stall at a border is the time from the end of a stage's last step, when its results are
    here, to when the first step of the next stage is handed to the devices, less what is work of
    its own: the checkpoint and the evaluation.
    """

    def __init__(self):
        self._began = self._ended = self._work = 0.0
        self._steps = 0
        self._step_seconds: float | None = None

    def first_step(self, steps: int) -> tuple[float, float] | None:
        """A stage's first step is under way.

        Args:
            steps: of the stage that are made in this process.

        Returns:
            The stall before it in seconds, and in steps of the stage before; None in a process's
            first stage, which nothing came before.
        """
        now = time.perf_counter()
        stall = now - self._ended - self._work
        self._began, self._work, self._steps = now, 0.0, steps
        return None if self._step_seconds is None else (stall, stall / self._step_seconds)

    def last_step(self) -> None:
        """A stage's last step has ended."""
        self._ended = time.perf_counter()
        self._step_seconds = (self._ended - self._began) / self._steps

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """What is done within, between two stages, is no stall."""
        started = time.perf_counter()
        yield
        self._work += time.perf_counter() - started


def seconds_since_start() -> float:
    """Since the process began, imports included; where that is not known, since our own import."""
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        # The name, in brackets, may hold spaces; the 22nd field is the 20th after it.
        stat = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(stat[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    return time.monotonic() - _IMPORTED
