"""The exceptions for what a user can cause: a value to mend, a run that was stopped."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A value that cannot be used; its message is one sentence saying which and what is allowed.

    The programs print the message alone, without a traceback, and exit with code 2.
    """


class Stopped(Exception):
    """A run that ended early because somebody wanted it to; its message says how to go on.

    The programs print the message alone, and exit as ``stopping.StopRequest.exit_code`` says.
    """


def unknown_name(kind: str, name: object, allowed: Iterable[str]) -> UsageError:
    """Returns the error for a name that is not in a table, listing the nearest names first."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(name), allowed, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UsageError(f"unknown {kind} {name!r}: {hint}allowed are {', '.join(allowed)}")
