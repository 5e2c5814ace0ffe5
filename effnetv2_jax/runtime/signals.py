"""SIGTERM and Ctrl-C: the first asks a run to save and stop, the second ends it at once."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A request by signal that the run stops.

    A thread of its own receives the signals. It also does so while the main thread waits for a
    device, a compiler or a file system, when Python would not call a signal handler.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first signal received, or None."""
        self._worth_saving = False

    def __call__(self) -> bool:
        """Returns True if the run should stop."""
        return self.signal is not None

    def worth_saving(self) -> None:
        """Says that from now on, the first signal must not end the process at once."""
        self._worth_saving = True

    def received(self, number: int) -> None:
        """Acts on a signal."""
        first = self.signal is None
        self.signal = self.signal or signal.Signals(number)
        if first and self._worth_saving:
            _tell(f"{self.signal.name}: saving and stopping; another one ends the run at once")
        elif first:
            _tell(f"{self.signal.name}: nothing new to save; resume with the same command")
            leave(self.exit_code)
        else:
            # The exit code of a process that did not catch the signal.
            leave(128 + number)

    @property
    def exit_code(self) -> int:
        """The exit code of a run that stopped as asked: 0, or 130 after a Ctrl-C."""
        return 128 + signal.SIGINT if self.signal == signal.SIGINT else 0


def _tell(text: str) -> None:
    # The log may be on a disk that is full.
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def leave(code: int) -> NoReturn:
    """Ends the process without waiting for threads, other processes or a compiler."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


@contextlib.contextmanager
def listening() -> Iterator[StopRequest]:
    """Catches SIGTERM and Ctrl-C while the block runs; only for the main thread."""
    request = StopRequest()
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)

    def listen() -> None:
        while numbers := os.read(receiver, 1):
            # Other signals that Python handles arrive here as well.
            if numbers[0] in _SIGNALS:
                request.received(numbers[0])

    # Python writes a byte for every signal that has a handler, whatever the threads are doing.
    before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    wakeup_before = signal.set_wakeup_fd(sender)
    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    try:
        yield request
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(sender)
        listener.join()
        os.close(receiver)
