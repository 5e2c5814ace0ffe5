"""Exceptions that a user can cause, and the rules for numbers that a user may set."""

import dataclasses
import difflib
import itertools
import math
import numbers
import re
from collections.abc import Iterable, Mapping
from typing import Any

LARGEST_WHOLE = 2**31 - 1
"""The largest whole number unless a rule says otherwise: steps and sizes are int32 on devices."""

LARGEST_REAL = 3.4e38
"""The largest number unless a rule says otherwise: larger ones are infinite in float32."""

LARGEST_SIDE = 10_000
"""The largest side of an image in px."""


class UsageError(ValueError):
    """A value that cannot be used. The message is one sentence: which value, and what is allowed.

    Programs print only the message, without a traceback, and exit with code 2.
    """


class Stopped(Exception):
    """A run that ended early because it was asked to. The message says how to go on.

    Programs print only the message, and exit with ``signals.StopRequest.exit_code``.
    """


def unknown_name(
    kind: str,
    name: object,
    allowed: Iterable[str],
    near: Iterable[str] | None = None,
    *,
    listed_by: str = "",
) -> UsageError:
    """Returns the error for a name that is not in a table, listing the nearest names first.

    >>> print(unknown_name("field", "lr", ["learning_rate", "loss"]))
    unknown field 'lr': did you mean learning_rate? allowed are learning_rate, loss

    Args:
        kind: The kind of name, as the message calls it.
        name: The name.
        allowed: The names that are allowed.
        near: The names that may be meant. None means the nearest of those allowed.
        listed_by: The place that lists a long table, which the message names instead of the table.
    """
    allowed = sorted(allowed)
    near = [*(near_names(str(name), allowed) if near is None else near)][:3]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    names = ", ".join(allowed)
    rest = f"{listed_by} lists all {len(allowed)}" if listed_by else f"allowed are {names}"
    return UsageError(f"unknown {kind} {name!r}: {hint}{rest}")


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


def near_names(name: str, names: Iterable[str]) -> list[str]:
    """Returns the names that someone who wrote ``name`` may have meant, the nearest first.

    >>> near_names("lr", ["learning_rate", "learning_rate_schedule", "loss"])
    ['learning_rate', 'learning_rate_schedule']
    """
    if len(name) < 2:
        return []
    names = sorted(names, key=len)
    # People shorten names to their initials.
    short = [x for x in names if _initials(x).startswith(name)]
    return [*dict.fromkeys([*short, *difflib.get_close_matches(name, names, n=3, cutoff=0.5)])]


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """A rule for a number that a user may set. No rule allows NaN or infinity.

    >>> Number(least=0, below=1).check("dropout_rate", 1.5)
    Traceback (most recent call last):
    effnetv2_jax.runtime.errors.UsageError: dropout_rate must be at least 0 and below 1, got 1.5

    Attributes:
        least: The least value, unless ``above`` is given.
        above: The bound that values are above.
        most: The largest value. None means the largest that devices can hold.
        below: The bound that values are below.
        whole: Allows only whole numbers.
        names: What the numbers of a tuple are called. Empty means that the value is no tuple.
        rising: Requires that no number of a tuple is smaller than the one before.
        optional: Also allows None, and in place of a tuple the empty one.
    """

    least: float = 0
    above: float | None = None
    most: float | None = None
    below: float | None = None
    whole: bool = False
    names: tuple[str, ...] = ()
    rising: bool = False
    optional: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raises UsageError if a value is not allowed; ``name`` is what the message calls it."""
        if self.optional and (value is None or (self.names and value in ((), []))):
            return
        if not self.names:
            if problem := self._problem(value):
                raise UsageError(f"{name} must be {problem}, got {value!r}")
            return
        parts = value if isinstance(value, tuple | list) else ()
        good = len(parts) == len(self.names) and not any(map(self._problem, parts))
        if not good or (self.rising and any(a > b for a, b in itertools.pairwise(parts))):
            order = f" with {' <= '.join(self.names)}" if self.rising else ""
            shown = tuple(value) if isinstance(value, list) else value
            raise UsageError(
                f"{name} must be ({', '.join(self.names)}){order}, each {self._problem(None)}, "
                f"got {shown!r}"
            )

    def _problem(self, value: Any) -> str:
        """Returns what a single number must be, or nothing if it is."""
        limit = LARGEST_WHOLE if self.whole else LARGEST_REAL
        most = limit if self.most is None else self.most
        bounds = f"at least {self.least:g}" if self.above is None else f"above {self.above:g}"
        if self.below is not None:
            bounds += f" and below {self.below:g}"
        elif self.most is not None:
            bounds += f" and at most {self.most}"
        is_number = isinstance(value, numbers.Integral if self.whole else numbers.Real)
        if not is_number or isinstance(value, bool) or not abs(value) < math.inf:
            kind = "a whole number" if self.whole else "a finite number"
            none = ", or None" if self.optional and not self.names else ""
            return f"{kind} {'of ' if self.above is None else ''}{bounds}{none}"
        if not (value >= self.least if self.above is None else value > self.above):
            return bounds
        if value > most or (self.below is not None and value >= self.below):
            return bounds if self.most or self.below else f"{bounds} and at most {limit}"
        return ""


def check_numbers(rules: Mapping[str, Number], values: Mapping[str, Any], prefix: str = "") -> None:
    """Raises UsageError for the first value that its rule does not allow.

    Args:
        rules: Rules by name.
        values: The values; those without a rule are not checked.
        prefix: Text in front of the names in the message.
    """
    for name, rule in rules.items():
        if name in values:
            rule.check(prefix + name, values[name])
