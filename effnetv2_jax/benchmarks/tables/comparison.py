"""Our figures beside the paper's: rows and sections, and how they are filled in."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Sequence

from effnetv2_jax.benchmarks.tables.costs import LOCAL, NOT_RUN, Costs, Ours, not_run
from effnetv2_jax.benchmarks.tables.paper import OUT_OF_MEMORY, Figure, Row
from effnetv2_jax.benchmarks.tables.plans import FOOTNOTES, SectionPlan, TablePlan
from effnetv2_jax.benchmarks.tables.quantities import Quantity


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A row.

    Attributes:
        label: Its name in the paper.
        model: A name of ``list_models()``. None if the model is not in the zoo.
        published: The paper's figure. None if it has none.
        ours: Our figure.
    """

    label: str
    model: str | None
    published: Figure | None
    ours: Ours

    @property
    def numbers(self) -> tuple[float, float] | None:
        """The published figure and ours, if both are numbers."""
        published, ours = self.published and self.published.value, self.ours.value
        if isinstance(published, int | float) and isinstance(ours, int | float):
            return published, ours
        return None

    @property
    def ratio(self) -> float | None:
        """Our figure over the published one."""
        return self.numbers[1] / self.numbers[0] if self.numbers and self.numbers[0] else None

    def agrees(self, tolerance: float) -> bool:
        """Returns True if ours is within a share of the published figure, or rounds to it.

        Args:
            tolerance: The share.

        Returns:
            False too if one of them is not a number.
        """
        if self.numbers is None:
            return False
        published, ours = self.numbers
        # 1 of 24, 0.1 of 24.0, 0.01 of 0.72
        last_place = 10.0 ** -len(str(published).partition(".")[2])
        allowed = max(tolerance * abs(published), last_place / 2)
        return abs(ours - published) <= allowed * (1 + 1e-9)


@dataclasses.dataclass(frozen=True)
class Section:
    """One quantity, over all rows of a table.

    Attributes:
        title: The paper's column.
        unit: The unit of its figures.
        rows: The rows in the paper's order.
        tolerance: The share of a published figure by which ours may differ, for exact quantities.
            None for speeds, for which the order counts, and each row relative to the first.
    """

    title: str
    unit: str
    rows: tuple[Comparison, ...]
    tolerance: float | None = None

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """The published figure and ours, for the rows that have both as numbers."""
        return [row.numbers for row in self.rows if row.numbers is not None]

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's correlation of both. None below three rows, or if one side is constant."""
        from scipy import stats

        published, ours = zip(*self.pairs, strict=True) if self.pairs else ((), ())
        if len(published) < 3 or len(set(published)) == 1 or len(set(ours)) == 1:
            return None
        return float(stats.spearmanr(published, ours).statistic)

    @property
    def verdicts(self) -> tuple[int, int] | None:
        """The number of rows with the published verdict on memory, and of all rows with both.

        None if the paper ran out of memory in no row.
        """
        published = [row.published.value if row.published else None for row in self.rows]
        if OUT_OF_MEMORY not in published:
            return None
        same = [
            (theirs == OUT_OF_MEMORY) == (row.ours.value == OUT_OF_MEMORY)
            for theirs, row in zip(published, self.rows, strict=True)
            if theirs is not None and row.ours.value is not None
        ]
        return sum(same), len(same)

    def relative(self, row: Comparison) -> tuple[float, float] | None:
        """Returns the published figure and ours, each over that of the first row with both."""
        if row.numbers is None or not all(self.pairs[0]):
            return None
        (published, ours), (first_published, first_ours) = row.numbers, self.pairs[0]
        return published / first_published, ours / first_ours


def compare(
    plan: TablePlan,
    sources: Sequence[Costs],
    *,
    models: Collection[str] | None = None,
    on_row: Callable[[str], None] = lambda words: None,
) -> list[Section]:
    """Finds all of our figures for a table.

    Args:
        plan: The contents of the table.
        sources: The devices. Each is asked for what depends on the device.
        models: The models whose rows are kept. None means all.
        on_row: Is told which row is next.

    Returns:
        A section for each quantity, with our figures beside the paper's.
    """
    sections: list[Section] = []
    for section in plan.sections:
        unit = section.unit or section.table.columns[section.column]
        found = []
        for title, source, quantity in _asked(section, sources):
            rows = []
            for row in section.rows(models):
                on_row(f"{section.column}: {row.label}")
                rows.append(_compared(section, row, source, quantity))
            found.append(Section(title, unit, tuple(rows), section.tolerance))
        # A source that has no figure gets no section, unless no source has one.
        run = [one for one in found if any(row.ours.how != NOT_RUN for row in one.rows)]
        sections += run or [one for one in found[:1] if one.rows]
    return sections


def count_rows(
    plan: TablePlan, sources: Sequence[Costs], models: Collection[str] | None = None
) -> int:
    """Returns how often ``compare`` calls ``on_row``."""
    return sum(len(s.rows(models)) * len(list(_asked(s, sources))) for s in plan.sections)


def _asked(section: SectionPlan, sources: Sequence[Costs]) -> Iterator[tuple[str, Costs, Quantity]]:
    """Yields a title, a source and a quantity for each device and dtype that it depends on."""
    for source in sources if section.of_device else sources[:1]:
        device = f" ({source.name})" if section.of_device and len(sources) > 1 else ""
        if not section.of_dtype:
            yield section.column + device, source, section.quantity
            continue
        for dtype in source.inference_dtypes:
            ours = f"; ours in {dtype}" if source.name == LOCAL else ""
            quantity = functools.partial(section.quantity, dtype=dtype)
            yield section.column + ours + device, source, quantity


def _compared(section: SectionPlan, row: Row, source: Costs, quantity: Quantity) -> Comparison:
    published = section.table.figure(row.label, section.column)
    if not row.model:
        ours = not_run("not in the zoo")
    elif published is None and section.of_device and not section.unit:
        ours = not_run("the paper has no figure here")
    else:
        ours = quantity(source, row)
    footnote = FOOTNOTES.get((row.model, section.column, published.value)) if published else None
    if footnote:
        ours = dataclasses.replace(ours, notes=(*ours.notes, footnote))
    return Comparison(row.label, row.model or None, published, ours)
