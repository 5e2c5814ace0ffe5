"""Our figures beside the paper's: rows, sections and tables, and how they are filled in."""

import dataclasses
import functools
import math
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
        if self.published is None or isinstance(self.published.value, str):
            return None
        if self.ours.value is None or isinstance(self.ours.value, str):
            return None
        return self.published.value, self.ours.value

    @property
    def ratio(self) -> float | None:
        """Our figure over the published one."""
        if self.numbers is None or self.numbers[0] == 0:
            return None
        return self.numbers[1] / self.numbers[0]

    @property
    def same_verdict(self) -> bool | None:
        """True if both fit into memory or both do not. None if one of them is not known."""
        if self.published is None or self.ours.value is None:
            return None
        return (self.published.value == OUT_OF_MEMORY) == (self.ours.value == OUT_OF_MEMORY)

    def agrees(self, tolerance: float) -> bool | None:
        """Returns True if ours is within a share of the published figure, or rounds to it.

        Returns:
            None if one of them is not a number.
        """
        if self.numbers is None:
            return None
        published, ours = self.numbers
        allowed = max(tolerance * abs(published), last_place(published) / 2)
        return abs(ours - published) <= allowed * (1 + 1e-9)


def last_place(printed: float) -> float:
    """Returns the place of a printed number's last digit.

    >>> last_place(24), last_place(24.0), last_place(0.72)
    (1.0, 0.1, 0.01)
    """
    return 10.0 ** -len(str(printed).partition(".")[2])


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
    def was_run(self) -> bool:
        """True if one of our figures was found."""
        return any(row.ours.how != NOT_RUN for row in self.rows)

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's correlation of both. None below three rows, or if one side is constant."""
        from scipy import stats

        if len(self.pairs) < 3 or any(
            len(set(side)) == 1 for side in zip(*self.pairs, strict=True)
        ):
            return None
        correlation = float(stats.spearmanr(*zip(*self.pairs, strict=True)).statistic)
        return None if math.isnan(correlation) else correlation

    @property
    def verdicts(self) -> tuple[int, int] | None:
        """The number of rows with the published verdict on memory, and of all rows with both.

        None if the paper ran out of memory in no row.
        """
        if not any(row.published and row.published.value == OUT_OF_MEMORY for row in self.rows):
            return None
        found = [row.same_verdict for row in self.rows if row.same_verdict is not None]
        return sum(found), len(found)

    def relative(self, row: Comparison) -> tuple[float, float] | None:
        """Returns the published figure and ours, each over that of the first row with both."""
        if row.numbers is None or not all(self.pairs[0]):
            return None
        (published, ours), (first_published, first_ours) = row.numbers, self.pairs[0]
        return published / first_published, ours / first_ours


@dataclasses.dataclass(frozen=True)
class ComparedTable:
    """A table of the paper, with our figures beside its own.

    Attributes:
        name: Its name, such as ``2`` for Table 2.
        title: What it shows.
        sections: One section for each quantity.
    """

    name: str
    title: str
    sections: tuple[Section, ...]


def compare(
    plan: TablePlan,
    sources: Sequence[Costs],
    *,
    models: Collection[str] | None = None,
    on_row: Callable[[str], None] = lambda words: None,
) -> ComparedTable:
    """Finds all of our figures for a table.

    Args:
        plan: What stands in the table.
        sources: Where costs come from. Each is asked for what depends on the device.
        models: The models whose rows are kept. None means all.
        on_row: Is told which row is next.
    """
    sections: list[Section] = []
    for section in plan.sections:
        rows = rows_of(plan, section, models)
        units = {column.name: column.unit for column in (section.table or plan.table).columns}
        found = [
            Section(
                title,
                section.unit or units[section.column],
                tuple(_compared(plan, section, row, source, quantity, on_row) for row in rows),
                section.tolerance,
            )
            for title, source, quantity in _asked(section, sources)
        ]
        # A source that has no figure gets no section, unless no source has one.
        sections += [one for one in found if one.was_run] or found[:1] if rows else []
    return ComparedTable(plan.name, plan.title, tuple(sections))


def count_rows(
    plan: TablePlan, sources: Sequence[Costs], models: Collection[str] | None = None
) -> int:
    """Returns how often ``compare`` calls ``on_row``."""
    return sum(
        len(rows_of(plan, section, models)) * len(list(_asked(section, sources)))
        for section in plan.sections
    )


def rows_of(plan: TablePlan, section: SectionPlan, models: Collection[str] | None) -> list[Row]:
    """Returns the rows of a section."""
    rows = [
        row
        for row in (section.table or plan.table).rows
        if section.labels is None or row.label in section.labels
    ]
    return [row for row in rows if models is None or row.model in models]


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


def _compared(
    plan: TablePlan,
    section: SectionPlan,
    row: Row,
    source: Costs,
    quantity: Quantity,
    on_row: Callable[[str], None],
) -> Comparison:
    on_row(f"{section.column}: {row.label}")
    table = section.table or plan.table
    published = None
    if section.column in [column.name for column in table.columns]:
        published = table.figure(row.label, section.column)
    if row.model is None:
        ours = not_run("not in the zoo")
    elif published is None and section.of_device and not section.unit:
        ours = not_run("the paper has no figure here")
    else:
        ours = quantity(source, row)
    footnote = FOOTNOTES.get((row.model, section.column, published.value)) if published else None
    if footnote:
        ours = dataclasses.replace(ours, notes=(*ours.notes, footnote))
    return Comparison(row.label, row.model, published, ours)
