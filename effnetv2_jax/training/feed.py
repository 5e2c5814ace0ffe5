"""Batches taken ahead of their use by a thread, so that waiting for one can be given up."""

import queue
import threading
from collections.abc import Callable, Iterable

from effnetv2_jax.training.mesh import Batch

_AHEAD = 2
_POLL_SECONDS = 0.1


class Feed:
    """Takes batches from an iterable in a thread of its own, which begins at once.

    Args:
        batches: The iterable.
    """

    def __init__(self, batches: Iterable[Batch]):
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        # A daemon, so that a stalled input does not keep the process alive.
        threading.Thread(target=self._take_all, args=(batches,), name="feed", daemon=True).start()

    def next(self, given_up: Callable[[], bool] = lambda: False) -> Batch | None:
        """Returns the next batch, or raises the exception that taking it raised.

        Args:
            given_up: A function called while there is no batch. If it returns True, the wait ends.

        Returns:
            None at the end of the batches, and if the wait was given up.
        """
        while not given_up():
            try:
                item = self._ready.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                raise item
            return item
        return None

    def close(self) -> None:
        """Takes no more batches."""
        self._closed.set()

    def _take_all(self, batches: Iterable[Batch]) -> None:
        try:
            for batch in batches:
                if not self._put(batch):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Batch | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False
