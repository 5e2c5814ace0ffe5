"""The one exception for what a user can cause and mend."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A value that cannot be used; its message is one sentence saying which and what is allowed.

    The programs print the message alone, without a traceback, and exit with code 2.
    """


def unknown_name(kind: str, name: object, allowed: Iterable[str]) -> UsageError:
    """Returns the error for a name that is not in a table, listing the nearest names first."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(name), allowed, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UsageError(f"unknown {kind} {name!r}: {hint}allowed are {', '.join(allowed)}")
