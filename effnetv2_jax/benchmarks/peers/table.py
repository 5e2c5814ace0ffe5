"""Prints the results of the benchmark ``peers`` as Markdown and as JSON."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from effnetv2_jax.benchmarks.markdown import NOTHING, table
from effnetv2_jax.benchmarks.peers.contenders import OURS
from effnetv2_jax.benchmarks.peers.race import Entry, Result, Task

MAX_IDLE_SHARE = 0.02
"""The share of a core above which a waiting process was in the way of the others."""


def images_per_second(result: Result, batch_size: int) -> dict[str, float]:
    """Returns the ``median``, ``low`` and ``high`` over the turns."""
    timing = result.timing
    seconds = {"median": timing.median, "low": timing.high, "high": timing.low}
    return {name: batch_size / value for name, value in seconds.items()}


def ratio(entries: Mapping[str, Entry], name: str, what: str) -> float | None:
    """Returns our images/s over a contender's, by the medians; None if one of them did not run."""
    ours, theirs = (entries[n].results.get(what) if n in entries else None for n in (OURS, name))
    return theirs.timing.median / ours.timing.median if ours and theirs else None


def as_json(task: Task, entries: Mapping[str, Entry], whats: Sequence[str]) -> dict[str, Any]:
    """Returns everything that was found, for JSON."""

    def done(name: str, entry: Entry, what: str) -> dict[str, Any]:
        if what in entry.reasons:
            return {"not_run": entry.reasons[what]}
        result = entry.results[what]
        return {
            "images_per_second": images_per_second(result, task.batch_size),
            "ours_over_theirs": ratio(entries, name, what),
            "first_step_seconds": result.first_seconds,
            "step_seconds": list(result.timing.seconds),
            "steps_a_turn": result.steps,
            "way": result.way,
            "idle_share": result.idle_share,
        }

    return dataclasses.asdict(task) | {
        "contenders": {
            name: {
                "title": entry.contender.title,
                **entry.facts,
                **{what: done(name, entry, what) for what in whats},
            }
            for name, entry in entries.items()
        },
    }


def as_markdown(
    task: Task,
    entries: Mapping[str, Entry],
    *,
    whats: Sequence[str],
    repeats: int,
    environment: Mapping[str, str],
) -> str:
    """Returns a heading, a table with a row for each contender, and notes.

    Args:
        task: The task of all contenders.
        entries: The entries from ``race``.
        whats: The things that were timed.
        repeats: The number of turns of each.
        environment: Environment variables that change times, as all contenders found them.
    """
    columns = ("{} images/s", "ours ÷ it", "first step s")
    head = ["contender", *(column.format(what) for what in whats for column in columns)]
    rows = [head, *(_row(name, entries, task, whats) for name in entries)]
    # Ours comes first, and has the longest name for the device.
    device = next((e.facts["device"] for e in entries.values() if e.facts), "no device")
    found = [item for e in entries.values() for item in e.facts.get("versions", {}).items()]
    versions = [f"{name} {version}" for name, version in dict.fromkeys(found)]
    heading = [
        f"{task.model}, {task.image_size} px, batch {task.batch_size}, {task.dtype}",
        f"{device}, {task.threads} {'thread' if task.threads == 1 else 'threads'} each; "
        f"medians of {repeats} turns (low–high), in turn, one at a time",
        "; ".join(versions),
        *([", ".join(f"{k}={v}" for k, v in environment.items())] if environment else []),
    ]
    return "\n".join([*heading, "", table(rows), "", *_notes(entries.values(), whats)])


def _row(name: str, entries: Mapping[str, Entry], task: Task, whats: Sequence[str]) -> list[str]:
    entry = entries[name]
    row = [entry.contender.title]
    told = ""
    for what in whats:
        if what in entry.reasons:
            # A reason is printed once.
            reason = entry.reasons[what]
            text = NOTHING if reason == told else f"not run: {reason}".replace("|", "\\|")
            told = reason
            row += [text, NOTHING, NOTHING]
            continue
        result = entry.results[what]
        speed = images_per_second(result, task.batch_size)
        ours_over_theirs = ratio(entries, name, what)
        row += [
            f"{_figure(speed['median'])} ({_figure(speed['low'])}–{_figure(speed['high'])})",
            NOTHING if ours_over_theirs is None else f"{ours_over_theirs:.2f}",
            f"{result.first_seconds:.1f}",
        ]
    return row


def _figure(value: float) -> str:
    """Returns three digits, or all digits in front of the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _notes(entries: Iterable[Entry], whats: Sequence[str]) -> list[str]:
    notes, warnings = [], []
    for entry in entries:
        title = entry.contender.title
        done = [what for what in whats if what in entry.results]
        told = "; ".join(f"{what}: {getattr(entry.contender, what)}" for what in done)
        ways = ", ".join(f"{what} by {entry.results[what].way}" for what in done)
        if done:
            notes.append(f"- {title}: {told} ({ways}).")
        for what, result in entry.results.items():
            if result.idle_share > MAX_IDLE_SHARE:
                warnings.append(
                    f"- Beware: {title}, {what}: its process took "
                    f"{100 * result.idle_share:.0f} % of a core while others ran."
                )
    return notes + warnings
