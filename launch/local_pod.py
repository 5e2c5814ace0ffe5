"""Runs one program as several processes on this machine, with simulated devices.

  python -m launch.local_pod --processes=4 --devices_per_process=8 -- --config=… --workdir=…

All arguments after ``--`` go to the program. Each printed line has the number of its process in
front; an error of the user's that several processes find is printed once. If one process dies, the
others are ended, and its last lines are shown again.
"""

import collections
import contextlib
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from absl import flags

from effnetv2_jax.runtime.workers import process_group
from launch import run_launcher

PROCESSES = flags.DEFINE_integer("processes", 4, "Number of processes.", lower_bound=1)
DEVICES = flags.DEFINE_integer(
    "devices_per_process", 8, "Number of simulated devices of each process.", lower_bound=1
)
PROGRAM = flags.DEFINE_string(
    "program", "effnetv2_jax.train", "Module to run; it must have a flag --coordinator_address."
)

LAST_LINES = 20
"""The number of lines that are shown again of a process that died."""

GRACE_SECONDS = 5.0
"""The time that the others get to end after one has died, before they are killed."""

STOP_SECONDS = 30.0
"""The time that processes get to save and end after a signal, before they are killed."""

# Programs print the user's errors as such a line, see runtime/cli.py.
_ERROR = b"error: "
# Gloo prints such a line for every group of devices that it connects.
_GLOO = b"Expected number of connected peer ranks is"
# A bar's escape sequences but colours: after a prefix they would move the cursor elsewhere.
_MOVES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-ln-z]")
_POLL_SECONDS = 0.1
_END_SECONDS = 1.0
_PIPE_SIZE = 1 << 16
_DEVICES_FLAG = "--xla_force_host_platform_device_count"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Lines:
    """Turns bytes as they come into lines as a terminal would show them in the end.

    A progress bar rewrites its line after each carriage return; only the last version is kept.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Returns the lines that are complete now, without their ends."""
        *complete, rest = (self._rest + data).split(b"\n")
        # A carriage return at the end may be the first half of a line's end.
        self._rest = rest[rest.rfind(b"\r", 0, -1) + 1 :]
        return [_shown(line) for line in complete]

    def end(self) -> list[bytes]:
        """Returns the last line, if it did not end."""
        rest, self._rest = _shown(self._rest), b""
        return [rest] if rest else []


def _shown(line: bytes) -> bytes:
    return _MOVES.sub(b"", line.rstrip(b"\r").rpartition(b"\r")[2])


class Member:
    """One process of the pod, the leader of its own process group.

    Args:
        number: Its number, from 0.
        process: The process, whose output is a pipe.
        errors: The errors that the pod's processes have printed, which this one adds to.
    """

    def __init__(self, number: int, process: subprocess.Popen, errors: set[bytes]):
        self.number = number
        self._errors = errors
        self.last_lines: collections.deque[bytes] = collections.deque(maxlen=LAST_LINES)
        self._lines = Lines()
        self._process = process
        assert process.stdout is not None
        self.output = process.stdout.fileno()
        os.set_blocking(self.output, False)

    def pass_on(self) -> bool:
        """Prints the output that has come; returns False at its end."""
        with contextlib.suppress(BlockingIOError):
            # The first read empties the pipe; the second one finds its end, if it is there.
            for _ in range(2):
                data = os.read(self.output, _PIPE_SIZE)
                self._show(self._lines.feed(data) if data else self._lines.end())
                if not data:
                    return False
        return True

    def _show(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            if _GLOO in line:
                continue
            self.last_lines.append(b"[%d] %s" % (self.number, line))
            if line not in self._errors:
                # Bytes, because the output need not be UTF-8.
                sys.stdout.buffer.write(self.last_lines[-1] + b"\n")
            if line.startswith(_ERROR):
                self._errors.add(line)
        sys.stdout.buffer.flush()

    def exit_code(self, timeout: float = 0.0) -> int | None:
        """Returns the exit code, −N if signal N killed it, or None while it runs.

        Args:
            timeout: The seconds to wait for its end.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout)
        return None

    def send(self, number: int) -> None:
        """Sends a signal to the process and all processes that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended
            os.killpg(self._process.pid, number)


class Pod:
    """Several processes that live and end together."""

    def __init__(self) -> None:
        self._members: list[Member] = []
        self._errors: set[bytes] = set()
        self._signals: list[int] = []
        self._selector = selectors.DefaultSelector()
        # The members whose outputs have ended, in this order.
        self._silent: list[Member] = []
        for number in _SIGNALS:
            signal.signal(number, lambda number, frame: self._signals.append(number))

    def run(self, commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> int:
        """Starts the processes, and prints their output until all have ended.

        Args:
            commands: The command of each process.
            environment: The environment variables of all of them.

        Returns:
            0 if all ended with 0, 128 + N after signal N, or the exit code of the first process
            that failed.
        """
        with contextlib.ExitStack() as stack:
            for number, command in enumerate(commands):
                # The terminal's Ctrl-C does not reach a group of its own; the pod passes the
                # signal on, once.
                group = process_group(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
                member = Member(number, stack.enter_context(group), self._errors)
                self._members.append(member)
                self._selector.register(member.output, selectors.EVENT_READ, member)
            while True:
                # In this order, so that a failure is seen if all have ended.
                ended, failed = self._ended(), self._first_failed()
                if ended or failed or self._signals:
                    break
                self._pass_on()
            if not ended:
                if self._signals:
                    self._end(self._signals[0], STOP_SECONDS)
                else:
                    self._end(signal.SIGTERM, GRACE_SECONDS)
                self._end(signal.SIGKILL, GRACE_SECONDS)
            for member in self._members:
                # What a process started may outlive it, and would keep its output open.
                member.send(signal.SIGKILL)
                member.pass_on()
        if failed:
            return _report(failed)
        stopped_well = all(member.exit_code() == 0 for member in self._members)
        return 128 + self._signals[0] if self._signals and not stopped_well else 0

    def _ended(self) -> bool:
        return all(member.exit_code() is not None for member in self._members)

    def _pass_on(self, timeout: float = _POLL_SECONDS) -> None:
        """Prints the output that comes within some seconds."""
        for key, _ in self._selector.select(timeout):
            if not key.data.pass_on():
                self._selector.unregister(key.fd)
                self._silent.append(key.data)

    def _first_failed(self) -> Member | None:
        if not any(member.exit_code() for member in self._members):
            return None
        # One death causes others, so all may have died by now. Outputs end in the order of deaths,
        # a moment before the processes do.
        self._pass_on(0.0)
        by_end = (member for member in self._silent if member.exit_code(_END_SECONDS))
        return next(by_end, None) or next(m for m in self._members if m.exit_code())

    def _end(self, number: int, seconds: float) -> None:
        """Sends a signal to all, and waits for their end or for another signal."""
        known = len(self._signals)
        for member in self._members:
            member.send(number)
        deadline = time.monotonic() + seconds
        while not self._ended() and len(self._signals) == known and time.monotonic() < deadline:
            self._pass_on()


def _report(failed: Member) -> int:
    """Shows how a process ended; returns its exit code as shells count."""
    code = failed.exit_code() or 0
    how = (
        f"was killed by {signal.Signals(-code).name}"
        if code < 0
        else f"ended with exit code {code}"
    )
    text = f"local_pod: process {failed.number} {how}, so the others were ended"
    lines = [*failed.last_lines]
    if code == 2 and lines and lines[-1].partition(b" ")[2].startswith(_ERROR):
        lines = []  # the sentence has just been printed, and says all
    sys.stderr.buffer.write(
        f"{text}; its last lines:\n".encode() if lines else f"{text}\n".encode()
    )
    sys.stderr.buffer.writelines(line + b"\n" for line in lines)
    sys.stderr.buffer.flush()
    return 128 - code if code < 0 else code


def environment(base: Mapping[str, str], devices: int) -> dict[str, str]:
    """Returns environment variables with which JAX has a number of CPU devices.

    Args:
        base: The variables to start from; their other XLA_FLAGS stay.
        devices: The number of devices of each process.
    """
    others = [word for word in base.get("XLA_FLAGS", "").split() if _DEVICES_FLAG not in word]
    return {
        **{name: value for name, value in base.items() if name != "JAX_NUM_CPU_DEVICES"},
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join([*others, f"{_DEVICES_FLAG}={devices}"]),
        # Lines come when they are printed, not when the program ends.
        "PYTHONUNBUFFERED": "1",
    }


def commands(program: str, arguments: Sequence[str], processes: int) -> list[list[str]]:
    """Returns the command of each process; they meet at a port of this machine that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        [
            *(sys.executable, "-m", program),
            f"--coordinator_address={address}",
            f"--num_processes={processes}",
            f"--process_id={number}",
            *arguments,
        ]
        for number in range(processes)
    ]


def main(arguments: list[str]) -> int:
    try:
        return Pod().run(
            commands(PROGRAM.value, arguments, PROCESSES.value),
            environment(os.environ, DEVICES.value),
        )
    except BrokenPipeError:
        # The reader of our output is gone. Python would fail when it flushes the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    run_launcher(main)
