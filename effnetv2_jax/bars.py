"""Progress bars for long work, on a terminal only."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
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


@contextlib.contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """While work of unknown length goes on, a line on stderr that spins and counts seconds.

    Args:
        text: beside it.

    Yields:
        What sets the words after the text.
    """
    if not sys.stderr.isatty():
        yield lambda words: None
        return
    from rich import console, progress

    columns = (progress.SpinnerColumn(), "{task.description}", progress.TimeElapsedColumn())
    stderr = console.Console(stderr=True)
    with progress.Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda words: bar.update(task, description=f"{text} {words}")
