"""Our figures beside the paper's: what is compared, and how well it agrees."""

import dataclasses
import math
from collections.abc import Sequence

from effnetv2_jax.benchmarks.tables.paper import OUT_OF_MEMORY, Figure

EXACT = "exact"
ESTIMATE = "XLA estimate for TPU {}"
MEASURED = "measured here ({})"
NOT_RUN = "not run"


@dataclasses.dataclass(frozen=True)
class Ours:
    """A figure of ours.

    Attributes:
        value: in the section's unit; ``OUT_OF_MEMORY``; None where it was not run.
        how: it was obtained: ``EXACT``, ``NOT_RUN``, or one of the others filled in.
        detail: how exactly: image size, dtype, batch.
        notes: what has to be known to read it, or why it was not run.
        low: of the repeats of a measurement, in the section's unit.
        high: likewise.
    """

    value: float | str | None
    how: str
    detail: str = ""
    notes: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None


def not_run(reason: str) -> Ours:
    """Of what was not run, and why."""
    return Ours(None, NOT_RUN, notes=(reason,))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A row.

    Attributes:
        label: as the paper names it.
        model: a name of ``list_models()``; None where it is not in the zoo.
        published: None where the paper has no figure.
        ours: beside it.
    """

    label: str
    model: str | None
    published: Figure | None
    ours: Ours

    @property
    def numbers(self) -> tuple[float, float] | None:
        """Published and ours, where both are numbers."""
        if self.published is None or isinstance(self.published.value, str):
            return None
        if self.ours.value is None or isinstance(self.ours.value, str):
            return None
        return self.published.value, self.ours.value

    @property
    def ratio(self) -> float | None:
        """Ours over the published."""
        if self.numbers is None or self.numbers[0] == 0:
            return None
        return self.numbers[1] / self.numbers[0]

    @property
    def same_verdict(self) -> bool | None:
        """Whether both fit or both do not; None where one says nothing."""
        if self.published is None or self.ours.value is None:
            return None
        return (self.published.value == OUT_OF_MEMORY) == (self.ours.value == OUT_OF_MEMORY)

    def agrees(self, tolerance: float) -> bool | None:
        """Whether ours is within a share of the published, or rounds to it; None without both."""
        if self.numbers is None:
            return None
        published, ours = self.numbers
        allowed = max(tolerance * abs(published), last_place(published) / 2)
        return abs(ours - published) <= allowed * (1 + 1e-9)


def last_place(printed: float) -> float:
    """Of a printed number's last digit: 1 for 24, which is an int, 0.1 for 24.0, 0.01 for 0.72."""
    return 10.0 ** -len(str(printed).partition(".")[2])


@dataclasses.dataclass(frozen=True)
class Section:
    """One quantity, over all rows of a table.

    Attributes:
        title: the paper's column.
        unit: of its figures.
        rows: in the paper's order.
        tolerance: the share within which ours has to be, for what is exact; None for speeds, of
            which the order counts, and what a row is relative to the first.
    """

    title: str
    unit: str
    rows: tuple[Comparison, ...]
    tolerance: float | None = None

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Published and ours, of the rows that have both as numbers."""
        return [row.numbers for row in self.rows if row.numbers is not None]

    @property
    def was_run(self) -> bool:
        return any(row.ours.how != NOT_RUN for row in self.rows)

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, of ours and the published; None below three rows that differ."""
        return rank_correlation(self.pairs)

    @property
    def verdicts(self) -> tuple[int, int] | None:
        """Rows whose verdict on memory is the published one, of how many; None if none is out."""
        if not any(row.published and row.published.value == OUT_OF_MEMORY for row in self.rows):
            return None
        found = [row.same_verdict for row in self.rows if row.same_verdict is not None]
        return sum(found), len(found)

    def relative(self, row: Comparison) -> tuple[float, float] | None:
        """Published and ours of a row, over those of the first that has both."""
        if row.numbers is None or not all(self.pairs[0]):
            return None
        published, ours = (
            value / first for value, first in zip(row.numbers, self.pairs[0], strict=True)
        )
        return published, ours


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's; None below three pairs, or where one side is constant."""
    from scipy import stats

    if len(pairs) < 3 or any(len(set(side)) == 1 for side in zip(*pairs, strict=True)):
        return None
    correlation = float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
    return None if math.isnan(correlation) else correlation


@dataclasses.dataclass(frozen=True)
class ComparedTable:
    """A table of the paper, ours beside it.

    Attributes:
        name: ``2`` for Table 2.
        title: what it shows.
        sections: a quantity each.
    """

    name: str
    title: str
    sections: tuple[Section, ...]
