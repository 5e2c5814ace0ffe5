"""Progress bars on standard error for long work; without a terminal they show nothing."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], text: str, total: int) -> Iterable[T]:
    """Yields the items and shows a bar, which disappears at the end.

    Args:
        items: The items.
        text: The text to the left of the bar.
        total: The number of items.
    """
    if not sys.stderr.isatty():
        return items
    from rich import console, progress

    stderr = console.Console(stderr=True)
    return progress.track(items, text, total=total, console=stderr, transient=True)


@contextlib.contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Shows a line that spins and counts seconds while the block runs, for work of unknown length.

    Args:
        text: The text of the line.

    Yields:
        A function that sets the words after the text.
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


class Counter:
    """A bar over steps of unequal length, with an estimate of the time that is left.

    Use it as a context manager.
    """

    def __init__(self):
        self._bar = None
        self._task = None
        self._text = ""

    def __enter__(self) -> "Counter":
        if sys.stderr.isatty():
            from rich import console, progress

            columns = (
                progress.BarColumn(20),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.description}"),
            )
            stderr = console.Console(stderr=True)
            self._bar = progress.Progress(
                *columns, console=stderr, transient=True, speed_estimate_period=24 * 3600
            )
            self._bar.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            self._bar.__exit__(*exception)

    def start(self, total: int) -> None:
        """Sets the number of steps."""
        if self._bar is not None:
            self._task = self._bar.add_task("", total=total)

    def next(self, text: str) -> None:
        """Ends a step, if there was one, and begins the next."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=1 if self._text else 0, description=text)
            self._text = text

    def say(self, words: str) -> None:
        """Shows what happens within a step."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=f"{self._text}, {words}")
