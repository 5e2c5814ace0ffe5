"""Compared tables as Markdown and as JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from effnetv2_jax.benchmarks.markdown import align
from effnetv2_jax.benchmarks.tables.comparison import ComparedTable, Comparison, Section

NOTHING = "–"


def as_markdown(table: ComparedTable) -> str:
    """A heading, and for each quantity a table, its verdict and its notes."""
    parts = [f"## {heading(table)}", *(_section(section) for section in table.sections)]
    return "\n\n".join(parts)


def heading(table: ComparedTable) -> str:
    """``Table 3. What it shows``; figures and the zoo name themselves."""
    return f"Table {table.name}. {table.title}" if table.name[0].isdigit() else table.title


def as_json(table: ComparedTable) -> dict[str, Any]:
    """All that is known, for JSON."""

    def row(section: Section, row: Comparison) -> dict[str, Any]:
        fields = dataclasses.asdict(row)
        return fields | {"ratio": row.ratio, "relative": section.relative(row)}

    return {
        "table": table.name,
        "title": table.title,
        "sections": [
            {
                "title": section.title,
                "unit": section.unit,
                "rows": [row(section, r) for r in section.rows],
                "rank_correlation": section.rank_correlation,
                "verdicts": section.verdicts,
            }
            for section in table.sections
        ],
    }


def _section(section: Section) -> str:
    notes = _Notes()
    ranked = section.tolerance is None and len(section.pairs) > 1
    head = ["", "published", "sources", "ours", "ours ÷ published"]
    if ranked:
        head += ["published, relative", "ours, relative"]
    head.append("how")
    rows = [head, *(_row(section, row, notes, ranked) for row in section.rows)]
    title = f"### {section.title[:1].upper()}{section.title[1:]}, {section.unit}"
    return "\n\n".join(filter(None, (title, align(rows), _verdict(section), notes.text())))


class _Notes:
    """Notes below a table, each once."""

    def __init__(self):
        self._numbers: dict[str, int] = {}

    def marks(self, notes: Sequence[str]) -> str:
        """`` [2]`` for a note; nothing for none."""
        numbers = [self._numbers.setdefault(note, len(self._numbers) + 1) for note in notes]
        return "".join(f" [{number}]" for number in numbers)

    def text(self) -> str:
        return "\n".join(f"- [{n}] {note}" for note, n in self._numbers.items())


def _row(section: Section, row: Comparison, notes: _Notes, ranked: bool) -> list[str]:
    published, ours = row.published, row.ours
    cells = [row.label, NOTHING, NOTHING, figure(ours.value), NOTHING]
    if published is not None:
        spread = f" ± {published.spread:.2f}" if published.spread is not None else ""
        cells[1:3] = [f"{published.value}{spread}", str(published.attested)]
    if ours.low is not None and ours.high is not None:
        cells[3] += f" ({figure(ours.low)}–{figure(ours.high)})"
    if row.ratio is not None:
        cells[4] = f"{row.ratio:.3f}"
        if section.tolerance is not None and abs(row.ratio - 1) > section.tolerance:
            cells[4] += ", but for rounding" if row.agrees(section.tolerance) else ", differs"
    if ranked:
        relative = section.relative(row)
        cells += [f"{value:.2f}" for value in relative] if relative else [NOTHING, NOTHING]
    return [*cells, ", ".join(filter(None, (ours.how, ours.detail))) + notes.marks(ours.notes)]


def figure(value: float | str | None) -> str:
    """Four digits, or all before the point; words as they are."""
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
