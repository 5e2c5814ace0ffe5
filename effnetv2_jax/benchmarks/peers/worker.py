"""Runs one contender in a process of its own; ``race`` starts it with ``runtime.workers``.

Needs only the standard library, so that interpreters without this package can run it too.
"""

import gc
import importlib.util
import os
import statistics
import time
from typing import Any

# The short turns of each way of running, before the fastest is taken.
TRIALS = 3
TRIAL_SECONDS = 0.3
# A turn of which nobody says how many steps it has.
TURN_SECONDS = 1.0


class ContenderProcess:
    """A contender that can be told to load, to prepare and to take its turn.

    Args:
        cores: The cores that it may use.
        file: The module that has ``facts`` and ``prepare``.
        options: Further arguments of ``prepare``.
    """

    def __init__(self, cores: list[int], file: str, options: dict[str, Any]):
        # Every thread that a library starts inherits it.
        os.sched_setaffinity(0, cores)
        self._file, self._options = file, options
        self._run: Any = None
        self._rest()

    def load(self) -> dict[str, Any]:
        """Imports the module. Returns its ``platform``, ``device`` and ``versions``."""
        spec = importlib.util.spec_from_file_location("contender", self._file)
        assert spec and spec.loader
        self._module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._module)
        return self._module.facts()

    def prepare(self, steps: int | None, **task: Any) -> dict[str, Any]:
        """Builds the network, compiles it, and finds the fastest way to run it.

        Args:
            steps: The number of steps per turn. None means as many as take about a second.
            **task: Arguments of the module's ``prepare``.

        Returns:
            ``first_seconds`` to the end of the first step, ``way``, and ``steps`` per turn.
        """
        # What was prepared before makes room.
        self._run = None
        gc.collect()
        found = {}
        for way, make in self._module.prepare(**task, **self._options).items():
            started = time.perf_counter()
            run = make()
            run(1)
            found[way] = (time.perf_counter() - started, run)
        way = next(iter(found))
        if len(found) > 1 or steps is None:
            tried = _step_seconds({way: run for way, (_, run) in found.items()})
            way = min(tried, key=lambda way: tried[way])
            steps = steps or max(1, round(TURN_SECONDS / tried[way]))
        first, self._run = found[way]
        self._rest()
        return {"way": way, "first_seconds": first, "steps": steps}

    def turn(self, steps: int) -> dict[str, float]:
        """Runs some steps.

        Returns:
            ``seconds`` that they took, ``waited``, the seconds since it last ran, and ``idle_cpu``,
            the seconds of a core that it took while it waited and should not have taken.
        """
        waited, idle_cpu = time.perf_counter() - self._rested, time.process_time() - self._cpu
        # The caches are full of other contenders' data.
        self._run(1)
        seconds = _seconds(self._run, steps)
        self._rest()
        return {"seconds": seconds, "waited": waited, "idle_cpu": idle_cpu}

    def _rest(self) -> None:
        self._rested, self._cpu = time.perf_counter(), time.process_time()


def _step_seconds(runs: dict[str, Any]) -> dict[str, float]:
    """Returns the seconds of a step of each way. Every ``run`` has done its first step."""
    steps = {way: max(1, round(TRIAL_SECONDS / _seconds(run, 1))) for way, run in runs.items()}
    trials: dict[str, list[float]] = {way: [] for way in runs}
    for number in range(TRIALS):
        # None is always the first.
        for way in list(runs) if number % 2 else reversed(list(runs)):
            runs[way](1)
            trials[way].append(_seconds(runs[way], steps[way]) / steps[way])
    return {way: statistics.median(seconds) for way, seconds in trials.items()}


def _seconds(run: Any, steps: int) -> float:
    started = time.perf_counter()
    run(steps)
    return time.perf_counter() - started
