"""Turns a run's ``metrics.jsonl`` into a report of one page: ``report.png`` and ``report.md``.

Accuracies are fractions in ``metrics.jsonl``, and percentages in the report.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from effnetv2_jax.runtime.files import whole_file, write_atomically
from effnetv2_jax.training.observing import reading
from effnetv2_jax.training.observing.reading import History, StageRows, read_history, read_scores

__all__ = ["find_not_finite", "read_history", "read_scores", "write_report"]

ACCURACY_NOTE = (
    "Train accuracy is measured on augmented images (RandAugment, mixup) with dropout switched "
    "on, so it usually lies below eval accuracy, which is measured on clean images."
)


def write_report(
    workdir: str | os.PathLike[str],
    history: History,
    *,
    title: str,
    facts: Mapping[str, str],
) -> tuple[Path, Path]:
    """Writes ``report.png`` and ``report.md`` and returns their paths.

    Each named evaluation gets a curve and three columns in the table of stages.

    Args:
        workdir: The run's folder, which exists.
        history: The rows that ``read_history`` returns.
        title: The heading of both files.
        facts: Names and values for the table at the top of ``report.md``.

    Raises:
        ValueError: If the history holds no metrics of training or of an evaluation.
    """
    rows = sorted(history, key=lambda row: row["step"])
    names = reading.evaluation_names(rows)
    if not names and not any(reading.is_trained(row) for row in rows):
        raise ValueError(
            "The history has no training or evaluation numbers, so there is nothing to report; "
            "did the run log a single line to metrics.jsonl?"
        )
    # Matplotlib takes a second to import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from effnetv2_jax.training.observing import curves

    # The name of a folder of images need not be text.
    title, *values = (
        text.encode(errors="backslashreplace").decode() for text in (title, *facts.values())
    )
    facts = dict(zip(facts, values, strict=True))
    stages = reading.split_stages(rows)
    png, markdown = Path(workdir) / "report.png", Path(workdir) / "report.md"
    figure = curves.draw(rows, stages, title, note=ACCURACY_NOTE)
    with whole_file(png) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
    write_atomically(markdown, _markdown(stages, names, title, facts, png.name))
    return png, markdown


def find_not_finite(history: History, names: Iterable[str]) -> tuple[list[str], set[int]]:
    """Finds evaluations whose last loss is not finite, and the steps that were evaluated well.

    Args:
        history: The rows that ``read_history`` returns.
        names: The names of the evaluations.

    Returns:
        The evaluations that ended badly, as text; and the steps with evaluations that are all
        finite.
    """
    wrong: list[str] = []
    by_step: dict[int, bool] = {}
    for name in names:
        key = f"{name}/loss"
        losses = {int(row["step"]): row[key] for row in history if key in row}
        for step, loss in losses.items():
            by_step[step] = by_step.get(step, True) and math.isfinite(loss)
        if losses and not math.isfinite(losses[max(losses)]):
            wrong.append(f"{key} of step {max(losses)}")
    return wrong, {step for step, good in by_step.items() if good}


def _markdown(
    stages: Sequence[StageRows],
    names: Sequence[str],
    title: str,
    facts: Mapping[str, str],
    picture: str,
) -> str:
    parts = [f"# {_cell(title)}"]
    if facts:
        parts.append(_table(["", ""], [[f"**{_cell(k)}**", _cell(v)] for k, v in facts.items()]))
    parts.append(f"![Loss, accuracy, image size, RandAugment and throughput]({picture})")
    if stages:
        header = ["stage", "steps", "image size (px)", "RandAugment", "dropout", "images/s"]
        header.append("train loss")
        for name in names:
            header += [f"{_cell(name)} {metric}" for metric in ("top-1 (%)", "top-5 (%)", "loss")]
        cells = [_stage_cells(stage, names) for stage in stages]
        parts += ["## Stages", _table(header, cells, right_aligned=True)]
        parts.append(
            "Steps are the first and the last ones logged in a stage. Train loss is the last "
            "logged value; images/s is the median, which the slow first steps of a stage hardly "
            "move."
        )
        parts.append(ACCURACY_NOTE)
    return "\n\n".join(parts) + "\n"


def _stage_cells(stage: StageRows, names: Sequence[str]) -> list[str]:
    _, speeds = reading.series(stage.train, "train/images_per_second")
    speeds = speeds[np.isfinite(speeds)]
    speed = statistics.median(speeds.tolist()) if speeds.size else None
    metrics = (("top1", ".2f", 100.0), ("top5", ".2f", 100.0), ("loss", ".4f", 1.0))
    settings = ("image_size", "randaugment_magnitude", "dropout_rate")
    return [
        str(stage.number),
        f"{stage.train[0]['step']}–{stage.end}",
        *(reading.setting(stage, f"train/{name}") for name in settings),
        _number(speed, ".1f" if speed is not None and speed < 100 else ",.0f"),
        _number(reading.last(stage.train, "train/loss"), ".4f"),
        *(
            _number(reading.last(stage.evals, f"{name}/{metric}"), spec, scale)
            for name in names
            for metric, spec, scale in metrics
        ),
    ]


def _number(value: float | None, spec: str, scale: float = 1.0) -> str:
    if value is None:
        return "–"
    return format(scale * value, spec) if math.isfinite(value) else str(value).replace("nan", "NaN")


def _table(
    header: Sequence[str], lines: Iterable[Sequence[str]], right_aligned: bool = False
) -> str:
    rule = ["---:" if right_aligned else "---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def _cell(text: str) -> str:
    """Returns the text as one line that cannot end a table's cell early."""
    return " ".join(str(text).split()).replace("|", "\\|")
