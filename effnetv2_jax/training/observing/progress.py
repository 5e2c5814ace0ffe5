"""Shows people how far a run is: a bar on a terminal, lines in a log."""

import sys
from typing import Protocol

from absl import logging

from effnetv2_jax.progressive import Stage


class Progress(Protocol):
    """A display that the training loop keeps up to date."""

    def start(self, step: int) -> None: ...
    def update(self, step: int, stage: Stage, loss: float, images_per_second: float) -> None: ...
    def message(self, text: str) -> None: ...
    def stop(self) -> None: ...


def make_progress(total_steps: int) -> Progress:
    """Returns a bar if standard error is a terminal, and log lines otherwise."""
    return BarProgress(total_steps) if sys.stderr.isatty() else LogProgress()


class LogProgress:
    """Logs messages only; the numbers have a line of their own from the metric writer."""

    def start(self, step: int) -> None:
        del step

    def update(self, step: int, stage: Stage, loss: float, images_per_second: float) -> None:
        del step, stage, loss, images_per_second

    def message(self, text: str) -> None:
        logging.info("%s", text)

    def stop(self) -> None:
        pass


class BarProgress:
    """A bar with stage, image size, magnitude, step, loss, images/s and time left.

    Args:
        total_steps: The number of steps of the whole run.
    """

    def __init__(self, total_steps: int):
        from rich import console, progress

        self._progress = progress.Progress(
            progress.TextColumn("{task.fields[stage]}"),
            progress.BarColumn(bar_width=10),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[numbers]}"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("left"),
            console=console.Console(stderr=True),
        )
        self._task = self._progress.add_task(
            "train", total=total_steps, stage="starting", numbers=""
        )
        self._verbosity = logging.get_verbosity()

    def start(self, step: int) -> None:
        # The bar shows the numbers of the log lines.
        logging.set_verbosity(logging.WARNING)
        self._progress.update(self._task, completed=step)
        self._progress.start()

    def update(self, step: int, stage: Stage, loss: float, images_per_second: float) -> None:
        self._progress.update(
            self._task,
            completed=step,
            # Short, so that the whole line fits a terminal of 80 columns.
            stage=(
                f"stage {stage.index + 1} {stage.image_size}px "
                f"mag {stage.randaugment_magnitude:.3g}"
            ),
            numbers=f"loss {loss:.3f} {images_per_second:.0f} images/s",
        )

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        self._progress.stop()
        logging.set_verbosity(self._verbosity)
