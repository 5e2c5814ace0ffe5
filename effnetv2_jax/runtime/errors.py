"""Exceptions that a user can cause: a value that cannot be used, or a stopped run."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A value that cannot be used. The message is one sentence: which value, and what is allowed.

    Programs print only the message, without a traceback, and exit with code 2.
    """


class Stopped(Exception):
    """A run that ended early because it was asked to. The message says how to go on.

    Programs print only the message, and exit with ``signals.StopRequest.exit_code``.
    """


def unknown_name(
    kind: str, name: object, allowed: Iterable[str], *, listed_by: str = ""
) -> UsageError:
    """Returns the error for a name that is not in a table, listing the nearest names first.

    Args:
        kind: The kind of name.
        name: The name.
        allowed: The names in the table.
        listed_by: The place that lists a long table, which the message names instead of the table.
    """
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(name), allowed, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    names = ", ".join(allowed)
    rest = f"{listed_by} lists all {len(allowed)}" if listed_by else f"allowed are {names}"
    return UsageError(f"unknown {kind} {name!r}: {hint}{rest}")
