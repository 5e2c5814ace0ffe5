"""What is written in Markdown: where to, and tables that can be read as they are."""

import pathlib
from collections.abc import Sequence

from effnetv2_jax.runtime.errors import UsageError


def document_path(value: str | None) -> pathlib.Path | None:
    """Of a --document flag; raises UsageError for what no Markdown file can be written to."""
    if value is None:
        return None
    path = pathlib.Path(value)
    if path.suffix != ".md" or not path.parent.is_dir():
        raise UsageError(f"--document must be a .md file in a folder that exists, got {value!r}")
    return path


def align(rows: Sequence[Sequence[str]]) -> str:
    """The rows, the first of which is the head, in columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in rows
    ]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return "\n".join(lines)
