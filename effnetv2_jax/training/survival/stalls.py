"""Notices that a run no longer moves, and says where every thread is."""

import sys
import threading
import time
import traceback
from collections.abc import Callable

from absl import logging


class Watch:
    """Logs the stacks of all threads where nothing has happened for too long; once per stall.

    Args:
        stall_seconds: that may pass between two beats.
        on_stall: called after that.
    """

    def __init__(self, stall_seconds: float, on_stall: Callable[[], None] = lambda: None):
        self._stall_seconds = stall_seconds
        self._on_stall = on_stall
        self._doing = "starting"
        self._last = time.monotonic()
        self._told = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def beat(self, doing: str) -> None:
        """Says that the run moves.

        Args:
            doing: what it does next.
        """
        self._doing, self._last = doing, time.monotonic()
        if self._told:
            logging.info("the run goes on: %s", doing)
            self._told = False

    def stop(self) -> None:
        """Watches no longer."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(self._stall_seconds / 4):
            seconds = time.monotonic() - self._last
            if seconds >= self._stall_seconds and not self._told:
                self._told = True
                logging.error(
                    "nothing has happened for %.0f s while %s; all threads:\n%s",
                    seconds,
                    self._doing,
                    stacks(),
                )
                self._on_stall()


def stacks() -> str:
    """Where every thread of Python is, the one that asks left out."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = threading.get_ident()
    return "\n".join(
        f"thread {names.get(number, number)}:\n{''.join(traceback.format_stack(frame))}"
        for number, frame in sys._current_frames().items()
        if number != own
    )
