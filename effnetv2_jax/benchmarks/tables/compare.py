"""Fills in the tables: every row of every quantity, from where costs come from."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Sequence

from effnetv2_jax.benchmarks.tables.comparison import (
    ComparedTable,
    Comparison,
    Ours,
    Section,
    not_run,
)
from effnetv2_jax.benchmarks.tables.costs import LOCAL, Costs
from effnetv2_jax.benchmarks.tables.footnotes import FOOTNOTES
from effnetv2_jax.benchmarks.tables.paper import Figure, Row
from effnetv2_jax.benchmarks.tables.plans import SectionPlan, TablePlan
from effnetv2_jax.benchmarks.tables.quantities import Quantity

NOT_IN_THE_ZOO = "not in the zoo"
NOTHING_PUBLISHED = "the paper has no figure here"


def compare(
    name: str,
    plan: TablePlan,
    sources: Sequence[Costs],
    *,
    models: Collection[str] | None = None,
    on_row: Callable[[str], None] = lambda words: None,
) -> ComparedTable:
    """Finds all of ours of a table.

    Args:
        name: of the table.
        plan: what stands in it.
        sources: of costs; what hangs on the device is asked of each.
        models: rows of others are left out; None for all rows.
        on_row: is told which row is next, before each.
    """
    sections: list[Section] = []
    for section in plan.sections:
        rows = rows_of(plan, section, models)
        found = [
            Section(
                title,
                _unit(plan, section),
                tuple(_compared(plan, section, row, source, quantity, on_row) for row in rows),
                section.tolerance,
            )
            for title, source, quantity in _asked(section, sources)
        ]
        # Whom nothing could be had from needs no table, unless there is none at all.
        sections += [one for one in found if one.was_run] or found[:1] if rows else []
    return ComparedTable(name, plan.title, tuple(sections))


def count_rows(
    plan: TablePlan, sources: Sequence[Costs], models: Collection[str] | None = None
) -> int:
    """How often ``compare`` calls ``on_row``."""
    return sum(
        len(rows_of(plan, section, models)) * len(list(_asked(section, sources)))
        for section in plan.sections
    )


def rows_of(plan: TablePlan, section: SectionPlan, models: Collection[str] | None) -> list[Row]:
    """Rows of a section."""
    table = section.table or plan.table
    rows = [row for row in table.rows if section.labels is None or row.label in section.labels]
    return [row for row in rows if models is None or row.model in models]


def _asked(section: SectionPlan, sources: Sequence[Costs]) -> Iterator[tuple[str, Costs, Quantity]]:
    """A title, whom to ask, and for what: once for each device and dtype that it hangs on."""
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
    published = _published(plan, section, row)
    if row.model is None:
        ours = not_run(NOT_IN_THE_ZOO)
    elif published is None and section.of_device and not section.unit:
        ours = not_run(NOTHING_PUBLISHED)
    else:
        ours = quantity(source, row)
    ours = _with_footnote(section, row, published, ours)
    return Comparison(row.label, row.model, published, ours)


def _published(plan: TablePlan, section: SectionPlan, row: Row) -> Figure | None:
    table = section.table or plan.table
    if section.column not in [column.name for column in table.columns]:
        return None
    return table.figure(row.label, section.column)


def _with_footnote(section: SectionPlan, row: Row, published: Figure | None, ours: Ours) -> Ours:
    if published is None or row.model is None or isinstance(published.value, str):
        return ours
    footnote = FOOTNOTES.get((row.model, section.column, published.value))
    if footnote is None:
        return ours
    return dataclasses.replace(ours, notes=(*ours.notes, footnote))


def _unit(plan: TablePlan, section: SectionPlan) -> str:
    units = {column.name: column.unit for column in (section.table or plan.table).columns}
    return section.unit or units[section.column]
