"""A table in Markdown that can be read as it is."""

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]]) -> str:
    """The rows, the first of which is the head, in columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in rows
    ]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return "\n".join(lines)
