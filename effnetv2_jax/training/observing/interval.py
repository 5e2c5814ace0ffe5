"""The steps between two lines of the log: their sums, fetched a few steps late, and their means."""

import collections
import functools
import operator
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np


class Interval:
    """Some steps of training in a row.

    Args:
        rows: The ``rows`` of steps that belong to the same line of the log and were made before
            the run was resumed.
    """

    def __init__(self, rows: Sequence[Mapping[str, float]] = ()):
        self.rows: list[Mapping[str, float]] = list(rows)
        """The sums of every step that has been fetched, as floats that JSON holds exactly."""
        self._under_way: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self._steps = 0
        self._started = time.perf_counter()

    def add(self, step: int, sums: dict[str, jax.Array]) -> None:
        """Takes the sums that a step returned, which need not have been computed yet."""
        for x in sums.values():
            x.copy_to_host_async()
        self._under_way.append((step, sums))
        self._steps += 1

    def fetch(self, leave: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """Waits for one step after the other.

        Args:
            leave: The number of the newest steps that are not waited for.

        Yields:
            ``(step, sums)`` of each step that was not fetched before, after adding it to ``rows``.
        """
        while len(self._under_way) > leave:
            step, sums = self._under_way.popleft()
            sums = jax.device_get(sums)
            self.rows.append({name: float(x) for name, x in sums.items() if x.ndim == 0})
            yield step, sums

    @property
    def bad_steps(self) -> int:
        """The number of fetched steps that were not finite and changed nothing."""
        return sum(not row["finite"] for row in self.rows)

    def means(self) -> dict[str, float]:
        """Returns ``loss`` and ``accuracy`` over the examples of all finite steps.

        The dict is empty if no step was finite.
        """
        good = [row for row in self.rows if row["finite"]]
        if not good:
            return {}

        def total(name: str) -> np.float32:
            # In order and in float32: an array's own sum would add in pairs, and round otherwise.
            return functools.reduce(operator.add, [np.float32(row[name]) for row in good])

        count = total("count")
        return {"loss": float(total("loss") / count), "accuracy": float(total("correct") / count)}

    def pause(self, seconds: float) -> None:
        """Leaves out seconds that were not spent on steps."""
        self._started += seconds

    def steps_per_second(self) -> float:
        """Returns the mean speed of the steps that this process made, until now."""
        return self._steps / (time.perf_counter() - self._started)
