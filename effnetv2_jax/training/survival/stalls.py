"""Notices that a run no longer moves, and shows where every thread is."""

import faulthandler
import threading
import time
from collections.abc import Callable

from absl import logging

_STDERR = 2


class Watch:
    """Reports a stall once: a line in the log, and the stacks of all threads on standard error.

    Args:
        stall_seconds: The longest time between two calls of ``beat`` that is not a stall.
        on_stall: A function to call after a stall was reported.
    """

    def __init__(self, stall_seconds: float, on_stall: Callable[[], None] = lambda: None):
        self._stall_seconds = stall_seconds
        self._on_stall = on_stall
        self._told = False
        self._stopped = threading.Event()
        self.beat("starting")
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def beat(self, doing: str) -> None:
        """Notes that the run moves.

        Args:
            doing: The work that begins now, such as ``training step 7``.
        """
        self._doing, self._last = doing, time.monotonic()
        if self._told:
            logging.info("the run goes on: %s", doing)
            self._told = False

    def stop(self) -> None:
        """Ends the watch."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(self._stall_seconds / 4):
            seconds = time.monotonic() - self._last
            if seconds >= self._stall_seconds and not self._told:
                self._told = True
                logging.error(
                    "nothing has happened for %.0f s while %s; all threads:", seconds, self._doing
                )
                # The descriptor, because notebooks replace sys.stderr by an object without a file.
                faulthandler.dump_traceback(_STDERR)
                self._on_stall()
