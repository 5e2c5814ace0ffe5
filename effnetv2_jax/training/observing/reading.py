"""Reads ``metrics.jsonl`` back: rows by step, evaluations by name, rows by stage.

A history is a list of dicts, one for each optimiser step that was logged, sorted by ``"step"``.
Keys that begin with ``train/`` are metrics of training. All other keys with a slash are
``NAME/METRIC`` of a named evaluation, such as ``eval/top1``. Accuracies are fractions in 0 … 1.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = Mapping[str, Any]
History = Sequence[Row]


@dataclasses.dataclass(frozen=True)
class StageRows:
    """The part of a history that belongs to one stage of progressive training.

    Attributes:
        number: The stage's number, from 1.
        start: The step at which the stage begins, as far as the history tells.
        end: The last step that was logged in the stage.
        train: The rows with metrics of training.
        evals: The rows with metrics of an evaluation.
    """

    number: int
    start: float
    end: float
    train: tuple[Row, ...]
    evals: tuple[Row, ...]


def read_history(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads ``metrics.jsonl``: one dict per step with all its keys, sorted by step.

    A resumed run may log a step again; for each step and key the last line in the file wins. The
    last line is ignored if it is not complete: a kill cut it off, or it is being written.

    Raises:
        ValueError: If a line is not a JSON object with a ``step``.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    merged: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            merged.setdefault(int(row["step"]), {}).update(row)
        except (ValueError, TypeError, KeyError):
            if number < len(lines):
                raise ValueError(
                    f"{path}, line {number} is not a JSON object with a step: {line[:60]!r}"
                ) from None
    return [merged[step] for step in sorted(merged)]


def read_scores(path: str | os.PathLike[str], name: str = "eval") -> dict[int, float]:
    """Returns the top-1 of every run of one evaluation, by step; empty if there is no file.

    Args:
        path: The ``metrics.jsonl`` of a run.
        name: The name of the evaluation.
    """
    if not Path(path).exists():
        return {}
    key = f"{name}/top1"
    return {int(row["step"]): row[key] for row in read_history(path) if key in row}


def evaluation_names(rows: Iterable[Row]) -> list[str]:
    """Returns the names of all evaluations in the order in which they first ran."""
    keys = (key for row in rows for key in row if "/" in key and not key.startswith("train/"))
    return list(dict.fromkeys(key.rpartition("/")[0] for key in keys))


def is_trained(row: Row) -> bool:
    """Tells whether a row has metrics of training."""
    return any(key.startswith("train/") for key in row)


def split_stages(rows: History) -> list[StageRows]:
    """Groups rows by ``train/stage``; an evaluation belongs to the last stage trained so far.

    Training is logged every few steps only. The last step that was logged in a stage serves as its
    border with the next one, which is exact if an evaluation ends the stage.
    """
    train: dict[int, list[Row]] = {}
    evals: dict[int, list[Row]] = {}
    current: int | None = None
    for row in rows:
        if is_trained(row):
            current = int(row.get("train/stage", 0))
            train.setdefault(current, []).append(row)
        if evaluation_names([row]) and current is not None:
            evals.setdefault(current, []).append(row)

    stages: list[StageRows] = []
    for number, members in train.items():
        closing = evals.get(number, [])
        end = max(row["step"] for row in (*members, *closing))
        start = stages[-1].end if stages else members[0]["step"]
        stages.append(StageRows(number, start, end, tuple(members), tuple(closing)))
    return stages


def series(rows: Iterable[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps and values of the rows that have a key.

    Returns:
        Two float64 arrays [n]; values that are not finite are NaN.
    """
    pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return steps, np.where(np.isfinite(values), values, np.nan)


def last(rows: Sequence[Row], key: str) -> Any:
    """Returns the value in the last of the rows that has a key, None if none has it."""
    return next((row[key] for row in reversed(rows) if row.get(key) is not None), None)


def setting(stage: StageRows, key: str) -> str:
    """Returns a setting of a stage as text."""
    value = last(stage.train, key)
    return "–" if value is None else f"{value:.4g}"
