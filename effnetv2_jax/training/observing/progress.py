"""Shows people how far a run is: a bar on a terminal, lines in a log."""

import sys

from absl import logging

from effnetv2_jax.progressive import Stage


class Progress:
    """A bar with stage, image size, magnitude, step, loss, images/s and time left.

    Without a terminal it only logs messages; the numbers have lines of their own in the log.

    Args:
        total_steps: The number of steps of the whole run. None shows no bar.
    """

    def __init__(self, total_steps: int | None = None):
        self._bar = None
        if total_steps is None or not sys.stderr.isatty():
            return
        from rich import console, progress

        self._bar = progress.Progress(
            progress.TextColumn("{task.fields[stage]}"),
            progress.BarColumn(bar_width=10),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[numbers]}"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("left"),
            console=console.Console(stderr=True),
        )
        self._task = self._bar.add_task("train", total=total_steps, stage="starting", numbers="")
        self._verbosity = logging.get_verbosity()

    def start(self, step: int) -> None:
        """Shows the bar of a run that goes on from a step; it replaces the lines of the log."""
        if self._bar is not None:
            logging.set_verbosity(logging.WARNING)
            self._bar.update(self._task, completed=step)
            self._bar.start()

    def update(self, step: int, stage: Stage, loss: float, images_per_second: float) -> None:
        """Shows the newest numbers."""
        if self._bar is not None:
            # Short, so that the whole line fits a terminal of 80 columns.
            place = f"stage {stage.index + 1} {stage.image_size}px"
            self._bar.update(
                self._task,
                completed=step,
                stage=f"{place} mag {stage.randaugment_magnitude:.3g}",
                numbers=f"loss {loss:.3f} {images_per_second:.0f} images/s",
            )

    def message(self, text: str) -> None:
        """Shows a sentence."""
        if self._bar is None:
            logging.info("%s", text)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.stop()
            logging.set_verbosity(self._verbosity)
