"""The steps between two lines of the log: their sums, fetched a few steps late, and their means."""

import collections
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax
import jax
import numpy as np
from clu import metrics


@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
    """Means over the examples of some steps."""

    loss: metrics.Average
    accuracy: metrics.Average

    @classmethod
    def of_sums(cls, sums: Mapping[str, Any]) -> "TrainMetrics":
        """From what the training step returns."""
        count = np.float32(sums["count"])
        return cls.empty().replace(
            loss=metrics.Average(total=np.float32(sums["loss"]), count=count),
            accuracy=metrics.Average(total=np.float32(sums["correct"]), count=count),
        )


class Interval:
    """Some steps of training.

    Args:
        rows: of steps that belong to the same line of the log and were made before a resumption,
            from ``rows``.
    """

    def __init__(self, rows: Sequence[Mapping[str, float]] = ()):
        self.rows: list[Mapping[str, float]] = list(rows)
        """Sums of every step that has been fetched; what JSON can hold, exactly."""
        self._under_way: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self._steps = 0
        self._started = time.perf_counter()

    def add(self, step: int, sums: dict[str, jax.Array]) -> None:
        """Takes what a step returned, which need not have been computed yet."""
        for x in sums.values():
            x.copy_to_host_async()
        self._under_way.append((step, sums))
        self._steps += 1

    def fetch(self, leave: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """Waits for one step after the other.

        Args:
            leave: so many of the last are left under way.

        Yields:
            (step, sums) of those that were not fetched before; ``rows`` ends with it.
        """
        while len(self._under_way) > leave:
            step, sums = self._under_way.popleft()
            sums = jax.device_get(sums)
            self.rows.append({name: float(x) for name, x in sums.items() if x.ndim == 0})
            yield step, sums

    @property
    def bad_steps(self) -> int:
        """How many of the fetched steps changed nothing."""
        return sum(not row["finite"] for row in self.rows)

    def means(self) -> dict[str, float]:
        """``loss`` and ``accuracy`` over the examples of the good ones; empty where all are bad."""
        good = [TrainMetrics.of_sums(row) for row in self.rows if row["finite"]]
        if not good:
            return {}
        merged = functools.reduce(lambda a, b: a.merge(b), good)
        return {name: float(value) for name, value in merged.compute().items()}

    def pause(self, seconds: float) -> None:
        """Leaves out seconds that were not spent on steps."""
        self._started += seconds

    def steps_per_second(self) -> float:
        """Of those that were made in this process, until now."""
        return self._steps / (time.perf_counter() - self._started)
