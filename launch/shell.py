"""Commands that are printed before they run, as they could be typed."""

import collections
import dataclasses
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from launch.errors import CallFailed, UsageError

NOT_FOUND = "NOT_FOUND"
"""In what gcloud says of what is not there."""

_LAST_LINES = 20

_ASK_SECONDS = 600
"""That an answer may take: a connection that hangs must not keep us from looking again."""


@dataclasses.dataclass
class Shell:
    """Runs commands, or only prints them.

    Attributes:
        dry_run: prints to standard output, and runs nothing; otherwise ``+ `` stands in front, on
            standard error.
        pause: seconds before a command that failed is tried again, doubled each time.
    """

    dry_run: bool = False
    pause: float = 5.0
    _asked: set[tuple[str, ...]] = dataclasses.field(default_factory=set)

    def run(self, command: Sequence[str], attempts: int = 1) -> None:
        """Runs a command whose output is for the user.

        Args:
            command: program and arguments.
            attempts: how often it is tried; for commands that may run twice.

        Raises:
            CallFailed: where it ends with another code than 0.
        """
        self._print(command)
        if not self.dry_run:
            self._try(command, None, attempts)

    def ask(self, command: Sequence[str], attempts: int = 1) -> str | None:
        """Runs a command whose output is for us; one that was asked before is not printed again.

        Returns:
            Its standard output; None in a dry run, where nobody can know.

        Raises:
            CallFailed: as ``run``.
        """
        if tuple(command) not in self._asked:
            self._asked.add(tuple(command))
            self._print(command)
        return None if self.dry_run else self._try(command, subprocess.PIPE, attempts)

    def become(self, command: Sequence[str]) -> int:
        """Ends this program and goes on as the command, with its terminal; 0 in a dry run."""
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
    """Tells the user, on standard error."""
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
        # What it says goes on to the user as it comes, but for what we ask over and over.
        last: collections.deque[bytes] = collections.deque(maxlen=_LAST_LINES)
        output = b""
        try:
            if stdout is None:
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
