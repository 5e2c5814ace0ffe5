"""Compared tables as Markdown and as JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from effnetv2_jax.benchmarks.markdown import NOTHING, table
from effnetv2_jax.benchmarks.tables.comparison import Comparison, Section
from effnetv2_jax.benchmarks.tables.plans import TablePlan


def as_markdown(plan: TablePlan, sections: Sequence[Section]) -> str:
    """Returns a heading, and for each quantity a table, its verdict and its notes."""
    # Figures and the zoo have their names in their titles.
    number = f"Table {plan.name}. " if plan.name[0].isdigit() else ""
    return "\n\n".join([f"## {number}{plan.title}", *map(_section, sections)])


def as_json(plan: TablePlan, sections: Sequence[Section]) -> dict[str, Any]:
    """Returns everything that is known, for JSON."""
    return {
        "table": plan.name,
        "title": plan.title,
        "sections": [
            {
                "title": section.title,
                "unit": section.unit,
                "rows": [
                    dataclasses.asdict(row)
                    | {"ratio": row.ratio, "relative": section.relative(row)}
                    for row in section.rows
                ],
                "rank_correlation": section.rank_correlation,
                "verdicts": section.verdicts,
            }
            for section in sections
        ],
    }


def _section(section: Section) -> str:
    numbers: dict[str, int] = {}
    ranked = section.tolerance is None and len(section.pairs) > 1
    head = ["", "published", "sources", "ours", "ours ÷ published"]
    if ranked:
        head += ["published, relative", "ours, relative"]
    head.append("how")
    rows = [head, *(_row(section, row, numbers, ranked) for row in section.rows)]
    title = f"### {section.title[:1].upper()}{section.title[1:]}, {section.unit}"
    notes = "\n".join(f"- [{number}] {note}" for note, number in numbers.items())
    return "\n\n".join(filter(None, (title, table(rows), _verdict(section), notes)))


def _row(section: Section, row: Comparison, numbers: dict[str, int], ranked: bool) -> list[str]:
    """Returns the cells of a row, and adds its notes to ``numbers``, each once."""
    published, ours = row.published, row.ours
    cells = [row.label, NOTHING, NOTHING, _figure(ours.value), NOTHING]
    if published is not None:
        spread = f" ± {published.spread:.2f}" if published.spread is not None else ""
        cells[1:3] = [f"{published.value}{spread}", str(published.attested)]
    if ours.low is not None and ours.high is not None:
        cells[3] += f" ({_figure(ours.low)}–{_figure(ours.high)})"
    if row.ratio is not None:
        cells[4] = f"{row.ratio:.3f}"
        if section.tolerance is not None and abs(row.ratio - 1) > section.tolerance:
            cells[4] += ", but for rounding" if row.agrees(section.tolerance) else ", differs"
    if ranked:
        relative = section.relative(row)
        cells += [f"{value:.2f}" for value in relative] if relative else [NOTHING, NOTHING]
    marks = [f" [{numbers.setdefault(note, len(numbers) + 1)}]" for note in ours.notes]
    return [*cells, ", ".join(filter(None, (ours.how, ours.detail))) + "".join(marks)]


def _figure(value: float | str | None) -> str:
    """Returns four digits, or all digits in front of the point; words as they are."""
    if value is None:
        return NOTHING
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _verdict(section: Section) -> str:
    said = []
    if section.verdicts is not None and section.verdicts[1]:
        same, rows = section.verdicts
        said.append(f"What fits is as published in {same} of {rows} rows.")
    correlation = section.rank_correlation if section.tolerance is None else None
    if correlation is not None:
        said.append(
            f"Spearman's rank correlation of ours and the published: {correlation:.2f} "
            f"({len(section.pairs)} rows)."
        )
    return " ".join(said)
