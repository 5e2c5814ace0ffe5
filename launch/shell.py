"""Runs commands, and prints each of them first in a form that can be typed."""

import collections
import dataclasses
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from effnetv2_jax.runtime.errors import UsageError

NOT_FOUND = "NOT_FOUND"
"""The word by which gcloud says that something is not there."""

_LAST_LINES = 20

_ASK_SECONDS = 600
"""The longest time to wait for an answer: a connection that hangs must not end the watching."""


class CallFailed(Exception):
    """A command that was run and failed; its message is one sentence.

    Args:
        command: The command, as a shell takes it.
        code: Its exit code.
        text: The end of its standard error.
    """

    def __init__(self, command: str, code: int, text: str):
        said = [line for line in text.splitlines() if line.strip()][-1:]
        super().__init__(": ".join([f"exit code {code} of {command}", *said]))
        self.text = text


@dataclasses.dataclass
class Shell:
    """Runs commands, or only prints them.

    Attributes:
        dry_run: Print commands to standard output and run none. Otherwise they are printed to
            standard error with ``+ `` in front, and run.
        pause: The seconds before a failed command is tried again, doubled each time.
    """

    dry_run: bool = False
    pause: float = 5.0
    _asked: set[tuple[str, ...]] = dataclasses.field(default_factory=set)

    def run(self, command: Sequence[str], attempts: int = 1) -> None:
        """Runs a command whose output is for the user.

        Args:
            command: The program and its arguments.
            attempts: The number of times to try it; above 1 only if it may run twice.

        Raises:
            CallFailed: If its last exit code is not 0.
        """
        self._print(command)
        if not self.dry_run:
            self._try(command, None, attempts)

    def ask(self, command: Sequence[str], attempts: int = 1) -> str | None:
        """Runs a command whose output is for the launcher; prints it only the first time.

        Returns:
            Its standard output; None in a dry run, in which nobody can know.

        Raises:
            CallFailed: If its last exit code is not 0.
        """
        if tuple(command) not in self._asked:
            self._asked.add(tuple(command))
            self._print(command)
        return None if self.dry_run else self._try(command, subprocess.PIPE, attempts)

    def become(self, command: Sequence[str]) -> int:
        """Replaces this process by the command, which gets its terminal; returns 0 in a dry run."""
        self._print(command)
        if self.dry_run:
            return 0
        try:
            os.execvp(command[0], list(command))
        except FileNotFoundError as error:
            raise _missing(command) from error

    def _try(self, command: Sequence[str], stdout: int | None, attempts: int) -> str:
        for attempt in range(attempts):
            try:
                return _call(command, stdout)
            except CallFailed as error:
                # That something is not there is an answer.
                if attempt + 1 == attempts or NOT_FOUND in error.text:
                    raise
                say(f"{error}; trying again")
                time.sleep(self.pause * 2**attempt)
        raise AssertionError("no attempt")

    def _print(self, command: Sequence[str]) -> None:
        if self.dry_run:
            print(shlex.join(command), flush=True)
        else:
            say(f"+ {shlex.join(command)}")


def say(text: str) -> None:
    """Prints a line to standard error."""
    print(text, file=sys.stderr, flush=True)


def _missing(command: Sequence[str]) -> UsageError:
    return UsageError(f"{command[0]} is not installed, or not on PATH")


def _call(command: Sequence[str], stdout: int | None) -> str:
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise _missing(command) from error
    with process:
        last: collections.deque[bytes] = collections.deque(maxlen=_LAST_LINES)
        output = b""
        try:
            if stdout is None:
                # The user sees its messages as they come. Not so for questions, which are asked
                # over and over.
                assert process.stderr is not None
                for line in process.stderr:
                    last.append(line)
                    sys.stderr.buffer.write(line)
                    sys.stderr.buffer.flush()
            else:
                output, errors = process.communicate(timeout=_ASK_SECONDS)
                last.extend(errors.splitlines(keepends=True))
        except subprocess.TimeoutExpired:
            process.kill()
            last.append(b"no answer within %d s" % _ASK_SECONDS)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        text = b"".join(last).decode(errors="replace")
        raise CallFailed(shlex.join(command), process.returncode, text)
    return output.decode(errors="replace")
