"""Markdown tables that can be read as they are, and the files that they go to."""

import pathlib
from collections.abc import Sequence

from effnetv2_jax.runtime.errors import UsageError

NOTHING = "–"
"""A cell that has nothing to say."""


def row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Returns a line of a table; cells are padded to the widths of their columns."""
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return f"| {' | '.join(padded)} |"


def rule(widths: Sequence[int]) -> str:
    """Returns the line below a table's head."""
    return f"|{'|'.join('-' * (width + 2) for width in widths)}|"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table whose first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *rest = (row(cells, widths) for cells in rows)
    return "\n".join([head, rule(widths), *rest])


def document_path(value: str | None) -> pathlib.Path | None:
    """Returns the path in a --document flag.

    Raises:
        UsageError: If it is not a Markdown file in a folder that exists.
    """
    if value is None:
        return None
    path = pathlib.Path(value)
    if path.suffix != ".md" or not path.parent.is_dir():
        raise UsageError(f"--document must be a .md file in a folder that exists, got {value!r}")
    return path
