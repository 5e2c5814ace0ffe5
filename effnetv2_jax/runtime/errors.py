"""Exceptions that a user can cause: a value that cannot be used, or a stopped run."""

import difflib
import re
from collections.abc import Iterable


class UsageError(ValueError):
    """A value that cannot be used. The message is one sentence: which value, and what is allowed.

    Programs print only the message, without a traceback, and exit with code 2.
    """


class Stopped(Exception):
    """A run that ended early because it was asked to. The message says how to go on.

    Programs print only the message, and exit with ``signals.StopRequest.exit_code``.
    """


def unknown_name(kind: str, name: object, allowed: Iterable[str]) -> UsageError:
    """Returns the error for a name that is not in a table, listing the nearest names first."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(name), allowed, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UsageError(f"unknown {kind} {name!r}: {hint}allowed are {', '.join(allowed)}")


def reason(error: Exception) -> str:
    """Returns the reason of an operating system's or TensorFlow's error, in half a line.

    The path of an OSError is left out, because our own messages name it.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"[Errno {error.errno}] {error.strerror}"
    lines = str(getattr(error, "message", error)).splitlines() or [""]
    # Without the names of TensorFlow's nodes around the sentence.
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*|\[\[.*", "", lines[0]).strip()
    return text or type(error).__name__
