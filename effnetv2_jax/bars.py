"""Progress bars for long work, on a terminal only."""

import sys
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], text: str, total: int) -> Iterable[T]:
    """The items, with a bar on stderr that goes when they end.

    Args:
        items: as they come.
        text: left of the bar.
        total: number of items.
    """
    if not sys.stderr.isatty():
        return items
    from rich import console, progress

    stderr = console.Console(stderr=True)
    return progress.track(items, text, total=total, console=stderr, transient=True)
