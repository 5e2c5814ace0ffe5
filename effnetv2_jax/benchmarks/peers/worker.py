"""The process in which one contender runs; ``process`` starts it and talks to it.

Takes a line of JSON for every command and answers with lines of JSON. Knows the standard library
alone, and is run by its path, so that interpreters without this package can run it too.
"""

import gc
import importlib.util
import json
import os
import queue
import statistics
import sys
import threading
import time
from typing import Any

TRIALS = 3
"""Short turns of each way of running a contender before the fastest is taken."""

TRIAL_SECONDS = 0.3
"""About how long such a short turn takes."""

TURN_SECONDS = 1.0
"""About how long a turn takes, where nobody says how many steps it has."""


def main() -> None:
    arguments = json.loads(sys.argv[1])
    # Every thread that any library will start inherits it.
    os.sched_setaffinity(0, arguments.pop("cores"))
    # Libraries write to stdout too: from here on that is stderr, and answers go to a copy.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    contender = Contender(**arguments)
    for line in _lines():
        command, options = json.loads(line)
        try:
            answer = {"result": getattr(contender, command)(**options)}
        except Exception as error:
            answer = {"error": _sentence(error)}
        print(json.dumps(answer), file=channel)


class Contender:
    """What one contender can be told to do.

    Args:
        file: of the module that has ``facts`` and ``prepare``.
        libraries: that it imports.
        options: further arguments of ``prepare``.
    """

    def __init__(self, file: str, libraries: list[str], options: dict[str, Any]):
        self._file, self._libraries, self._options = file, libraries, options
        self._run: Any = None
        self._rest()

    def load(self) -> dict[str, Any]:
        """Imports what it needs; returns its ``platform``, ``device`` and ``versions``."""
        # Beside this file, where Python looks first for a script's imports, stand our own modules.
        here = os.path.dirname(os.path.abspath(__file__))
        sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != here]
        for library in self._libraries:
            if importlib.util.find_spec(library) is None:
                raise ModuleNotFoundError(f"{library} is not installed", name=library)
        spec = importlib.util.spec_from_file_location("contender", self._file)
        assert spec and spec.loader
        self._module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._module)
        return self._module.facts()

    def prepare(self, steps: int | None, **task: Any) -> dict[str, Any]:
        """Builds the network, compiles, and finds the fastest way to run it.

        Args:
            steps: of a turn; None for as many as take about a second.
            **task: arguments of the module's ``prepare``.

        Returns:
            ``first_seconds`` to the end of the first step, ``way`` and ``steps`` of a turn.
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
            ``seconds`` that they took; ``waited``, the seconds since it last ran, and
            ``idle_cpu``, the seconds of a core that it took in them and should not have.
        """
        waited, idle_cpu = time.perf_counter() - self._rested, time.process_time() - self._cpu
        # Caches are full of what others did.
        self._run(1)
        seconds = _seconds(self._run, steps)
        self._rest()
        return {"seconds": seconds, "waited": waited, "idle_cpu": idle_cpu}

    def _rest(self) -> None:
        self._rested, self._cpu = time.perf_counter(), time.process_time()


def _step_seconds(runs: dict[str, Any]) -> dict[str, float]:
    """Seconds of a step of each; every ``run`` has done its first."""
    steps = {way: max(1, round(TRIAL_SECONDS / _seconds(run, 1))) for way, run in runs.items()}
    trials: dict[str, list[float]] = {way: [] for way in runs}
    for number in range(TRIALS):
        # Whoever comes first is not always the same.
        for way in list(runs) if number % 2 else reversed(list(runs)):
            runs[way](1)
            trials[way].append(_seconds(runs[way], steps[way]) / steps[way])
    return {way: statistics.median(seconds) for way, seconds in trials.items()}


def _seconds(run: Any, steps: int) -> float:
    started = time.perf_counter()
    run(steps)
    return time.perf_counter() - started


def _lines():
    """What is said to this process; it ends with the one who speaks, however that ends."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        # A compilation would go on for minutes.
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield lines.get()


def _sentence(error: Exception) -> str:
    """What an exception says, in a line."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name} is not installed"
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


if __name__ == "__main__":
    main()
