"""Progress bars on standard error for long work; without a terminal they show nothing."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich import progress

T = TypeVar("T")


def _make_bar(
    *columns: "str | progress.ProgressColumn", period: float = 30.0
) -> "progress.Progress":
    """Returns a bar whose speed is the mean over ``period`` seconds."""
    from rich import console, progress

    hidden = not sys.stderr.isatty()
    return progress.Progress(
        *columns,
        # Rich ends even a disabled bar with an empty line.
        console=console.Console(stderr=True, quiet=hidden),
        transient=True,
        speed_estimate_period=period,
        disable=hidden,
    )


def track(items: Iterable[T], text: str, total: int) -> Iterable[T]:
    """Yields the items and shows a bar, which disappears at the end.

    Args:
        items: The items.
        text: The text to the left of the bar.
        total: The number of items.
    """
    with _make_bar() as bar:
        yield from bar.track(items, total, description=text)


@contextlib.contextmanager
def transfer(text: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Shows a bar over the bytes of a file while the block runs.

    Args:
        text: The text to the left of the bar.
        start: The number of bytes that are there already.
        total: The number of bytes in all; None if it is not known.

    Yields:
        A function that adds a number of bytes.
    """
    from rich import progress

    columns = (
        "{task.description}",
        progress.BarColumn(20),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with _make_bar(*columns) as bar:
        task = bar.add_task(text, total=total, completed=start)
        yield lambda count: bar.advance(task, count)


@contextlib.contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Shows a line that spins and counts seconds while the block runs, for work of unknown length.

    Args:
        text: The text of the line.

    Yields:
        A function that sets the words after the text.
    """
    from rich import progress

    columns = (progress.SpinnerColumn(), "{task.description}", progress.TimeElapsedColumn())
    with _make_bar(*columns) as bar:
        task = bar.add_task(text, total=None)
        yield lambda words: bar.update(task, description=f"{text} {words}")


class Counter:
    """A bar over steps of unequal length, with an estimate of the time that is left.

    Use it as a context manager.
    """

    def __init__(self):
        from rich import progress

        self._text = ""
        self._bar = _make_bar(
            progress.BarColumn(20),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            "{task.description}",
            period=24 * 3600,
        )

    def __enter__(self) -> "Counter":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def start(self, total: int) -> None:
        """Sets the number of steps."""
        self._bar.add_task("", total=total)

    def next(self, text: str) -> None:
        """Ends a step, if there was one, and begins the next."""
        for task in self._bar.task_ids:
            self._bar.update(task, advance=1 if self._text else 0, description=text)
        self._text = text

    def say(self, words: str) -> None:
        """Shows what happens within a step."""
        for task in self._bar.task_ids:
            self._bar.update(task, description=f"{self._text}, {words}")
