"""Turns a run's ``metrics.jsonl`` into a one-page report: ``report.png`` and ``report.md``.

A history is a list of dicts, one per optimiser step that was logged, sorted by ``"step"``. Keys
that start with ``train/`` come from training lines, those with ``eval/`` from evaluation lines.
Accuracies are fractions in [0, 1] there, and percentages in the report.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
History = Sequence[Row]

# Okabe-Ito colours, told apart under the common colour-vision deficiencies and in grey print.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#A8598A"
INK, GREY, PALE = "#222222", "#666666", "#C8C8C8"

FIGURE_INCHES = (8.0, 9.0)
DPI = 150
POINTS_PER_INCH = 72.0
# Width of an average DejaVu Sans digit or letter, as a share of the font size.
GLYPH_WIDTH = 0.62
# More stages or evaluations than this are drawn lighter, and not all of them are labelled.
MANY_POINTS = 12

ACCURACY_NOTE = (
    "Train accuracy is measured on augmented images (RandAugment, mixup) with dropout switched "
    "on, so it usually lies below eval accuracy, which is measured on clean images."
)


@dataclass(frozen=True)
class Stage:
    """One stage of progressive learning; ``start`` and ``end`` are its borders in steps."""

    number: int
    start: float
    end: float
    train: tuple[Row, ...]
    evals: tuple[Row, ...]


def read_history(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads ``metrics.jsonl``: one dict per step with all its keys, sorted by step.

    A resumed run may log a step again; for each step and key the last line in the file wins.
    Lines that a kill cut off are ignored, also where a resumed run wrote on behind them.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    merged: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        row = _parse_line(line)
        if row is None:
            if number < len(lines) and line.strip() and not line.lstrip().startswith("{"):
                raise ValueError(f"{path}, line {number} is not a JSON object: {line[:60]!r}")
            continue
        if "step" not in row:
            raise ValueError(f"{path}, line {number} has no 'step'.")
        merged.setdefault(int(row["step"]), {}).update(row)
    return [merged[step] for step in sorted(merged)]


def read_scores(path: str | os.PathLike[str], name: str = "eval") -> dict[int, float]:
    """Returns the top-1 of every evaluation of a name, by step; empty if there is no file."""
    if not Path(path).exists():
        return {}
    key = f"{name}/top1"
    return {int(row["step"]): row[key] for row in read_history(path) if key in row}


def _parse_line(line: str) -> dict[str, Any] | None:
    """The object on the line, or None where there is no complete one."""
    # The objects are flat, so the last "{" starts the only one that can be complete: a run killed
    # in mid-line leaves no newline, and the resumed run's first object is glued to the fragment.
    for candidate in (line, line[max(line.rfind("{"), 0) :]):
        try:
            row = json.loads(candidate)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            return row
    return None


def write_report(
    workdir: str | os.PathLike[str],
    history: History,
    *,
    title: str,
    facts: Mapping[str, str],
) -> tuple[Path, Path]:
    """Writes ``report.png`` and ``report.md`` into ``workdir`` and returns their paths.

    Args:
        workdir: existing folder of the run.
        history: rows as ``read_history`` returns them.
        title: heading of both files.
        facts: name -> value, printed as a table at the top of ``report.md``.

    Raises:
        ValueError: the history holds no training and no evaluation numbers.
    """
    rows = sorted(history, key=lambda row: row["step"])
    if not any(key.startswith(("train/", "eval/")) for row in rows for key in row):
        raise ValueError(
            "The history has no training or evaluation numbers, so there is nothing to report; "
            "did the run log a single line to metrics.jsonl?"
        )
    stages = split_stages(rows)
    png, markdown = Path(workdir) / "report.png", Path(workdir) / "report.md"
    _write_png(png, _draw(rows, stages, title))
    _write_text(markdown, _markdown(rows, stages, title, facts, png.name))
    return png, markdown


def split_stages(rows: History) -> list[Stage]:
    """Groups the rows by ``train/stage``; an evaluation belongs to the last stage trained so far.

    Training is logged every few steps only, so a stage's last logged step, which is exact where
    an evaluation closes the stage, serves as its border with the next one.
    """
    train: dict[int, list[Row]] = {}
    evals: dict[int, list[Row]] = {}
    current: int | None = None
    for row in rows:
        if _has(row, "train/"):
            current = int(row.get("train/stage", 0))
            train.setdefault(current, []).append(row)
        if _has(row, "eval/") and current is not None:
            evals.setdefault(current, []).append(row)

    stages: list[Stage] = []
    for number, members in train.items():
        closing = evals.get(number, [])
        end = max(row["step"] for row in (*members, *closing))
        start = stages[-1].end if stages else members[0]["step"]
        stages.append(Stage(number, start, end, tuple(members), tuple(closing)))
    return stages


def _has(row: Row, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in row)


def _series(rows: Iterable[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, both ``[n]`` float64, of the rows with the key; infinities become NaN."""
    pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return steps, np.where(np.isfinite(values), values, np.nan)


def _moving_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over up to ``width`` finite neighbours; ``[n]`` -> ``[n]``, NaN stays NaN."""
    finite = np.isfinite(values)
    # Not np.convolve: its "same" mode returns the window's length for a stage shorter than that.
    half = width // 2
    totals = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    means = (totals[high] - totals[low]) / np.maximum(counts[high] - counts[low], 1)
    return np.where(finite, means, np.nan)


def _draw(rows: History, stages: Sequence[Stage], title: str) -> Figure:
    """Draws the panels that the history has numbers for, one below the other."""
    from matplotlib.figure import Figure

    panels = [
        (3.0, ("train/loss", "eval/loss"), _draw_loss),
        (3.0, ("train/accuracy", "eval/top1"), _draw_accuracy),
        (1.05, ("train/image_size",), _draw_image_size),
        (1.05, ("train/randaugment_magnitude",), _draw_magnitude),
        (1.5, ("train/images_per_second",), _draw_throughput),
    ]
    panels = [panel for panel in panels if any(key in row for key in panel[1] for row in rows)]
    figure = Figure(figsize=FIGURE_INCHES, dpi=DPI, facecolor="white")
    heading = textwrap.shorten(title, width=70, placeholder=" …")
    figure.text(
        0.02,
        0.982,
        heading,
        size=13 if len(heading) <= 58 else 11,
        weight="bold",
        color=INK,
        va="top",
        parse_math=False,
    )
    if not panels:
        figure.text(0.5, 0.5, "No curves to draw", color=GREY, ha="center")
        return figure

    all_axes = figure.subplots(
        len(panels),
        1,
        sharex=True,
        squeeze=False,
        gridspec_kw={
            "height_ratios": [panel[0] for panel in panels],
            "left": 0.122, "right": 0.915, "bottom": 0.108, "top": 0.902, "hspace": 0.14,
        },
    )[:, 0]  # fmt: skip
    all_axes[0].set_xlim(*_step_limits(rows))
    for axes, (_, _, draw) in zip(all_axes, panels, strict=True):
        _style(axes, stages)
        draw(axes, rows, stages)
    _label_stages(all_axes[0], stages)
    all_axes[-1].set_xlabel("step", size=9, color=INK)
    figure.align_ylabels(all_axes)
    caption = "\n".join(textwrap.wrap(_caption(rows, stages), width=132))
    figure.text(0.02, 0.012, caption, size=7.3, color=GREY, va="bottom", linespacing=1.35)
    return figure


def _caption(rows: History, stages: Sequence[Stage]) -> str:
    parts = []
    if any("train/accuracy" in row for row in rows):
        parts.append(ACCURACY_NOTE)
    width = _smoothing_width(stages)
    if width > 1:
        parts.append(f"Pale: as logged; strong: mean of {width} logged values.")
    if any("train/images_per_second" in row for row in rows):
        parts.append("Images/s: median per stage.")
    return " ".join(parts)


def _step_limits(rows: History) -> tuple[float, float]:
    first, last = float(rows[0]["step"]), float(rows[-1]["step"])
    pad = 0.008 * (last - first) or 1.0
    return first - pad, last + pad


def _style(axes: Axes, stages: Sequence[Stage]) -> None:
    from matplotlib.ticker import MaxNLocator

    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=GREY, linewidth=0.8)
    axes.tick_params(labelsize=8, color=GREY, labelcolor=INK, width=0.8, length=3)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    width = 0.8 if len(stages) <= MANY_POINTS else 0.4
    for stage in stages[1:]:
        axes.axvline(stage.start, color=PALE, linewidth=width, zorder=0)


def _set_limits(axes: Axes, *arrays: np.ndarray, zero: bool, headroom: float = 0.06) -> None:
    """Fits the y axis to the finite values; ``headroom`` is a share of their range."""
    values = np.concatenate(arrays)
    values = values[np.isfinite(values)]
    if not values.size:
        axes.set_yticks([])
        axes.text(
            0.5, 0.5, "no finite values", size=8, color=GREY, ha="center", va="center",
            transform=axes.transAxes,
        )  # fmt: skip
        return
    low, high = float(values.min()), float(values.max())
    if zero:
        low = min(low, 0.0)
    span = (high - low) or abs(high) or 1.0
    axes.set_ylim(low if zero else low - 0.06 * span, high + headroom * span)


def _smoothing_width(stages: Sequence[Stage]) -> int:
    """Window of the moving mean, in logged values; odd, and 1 for a short run."""
    return 2 * (sum(len(stage.train) for stage in stages) // 120) + 1


def _draw_train(
    axes: Axes, stages: Sequence[Stage], key: str, scale: float
) -> tuple[np.ndarray, float | None]:
    """Draws the training line, broken at stage borders; returns its values and its end point."""
    width, drawn, end = _smoothing_width(stages), [], None
    for stage in stages:
        steps, values = _series(stage.train, key)
        values = scale * values
        smooth = _moving_mean(values, width)
        if width > 1:
            axes.plot(steps, values, color=BLUE, linewidth=0.5, alpha=0.35, zorder=2)
        # A line through one point is invisible, so a stage with few of them gets dots.
        marker = "o" if len(steps) < 3 else ""
        axes.plot(steps, smooth, color=BLUE, linewidth=1.4, zorder=3, marker=marker, markersize=1.8)
        drawn.append(values)
        good = np.flatnonzero(np.isfinite(smooth))
        if good.size:
            end = float(smooth[good[-1]])
    return np.concatenate([np.empty(0), *drawn]), end


def _draw_eval(axes: Axes, rows: History, key: str, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Draws the evaluation points; returns their steps and values, ``[m]`` each."""
    steps, values = _series(rows, key)
    values = scale * values
    good = np.isfinite(values)
    size = 22 if good.sum() <= MANY_POINTS else 10
    axes.scatter(
        steps[good], values[good], s=size, color=VERMILLION, edgecolor="white", linewidth=0.5,
        zorder=5, clip_on=False,
    )  # fmt: skip
    return steps[good], values[good]


def _draw_loss(axes: Axes, rows: History, stages: Sequence[Stage]) -> None:
    from matplotlib.ticker import MaxNLocator

    train, train_end = _draw_train(axes, stages, "train/loss", 1.0)
    _, values = _draw_eval(axes, rows, "eval/loss", 1.0)
    _set_limits(axes, train, values, zero=False)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.set_ylabel("loss", size=9, color=INK)
    _label_ends(axes, {"train": (train_end, BLUE), "eval": (_last(values), VERMILLION)})


def _draw_accuracy(axes: Axes, rows: History, stages: Sequence[Stage]) -> None:
    train, train_end = _draw_train(axes, stages, "train/accuracy", 100.0)
    steps, values = _draw_eval(axes, rows, "eval/top1", 100.0)
    headroom = 0.13 if values.size else 0.06
    _set_limits(axes, train, values, zero=_low(train, values) < 30, headroom=headroom)
    # The headroom is for the labels: there is no accuracy above 100 % to mark a tick for.
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= min(high, 100)])
    axes.set_ylabel("top-1 accuracy (%)", size=9, color=INK)
    _label_points(axes, steps, values)
    _label_ends(axes, {"train": (train_end, BLUE), "eval": (_last(values), VERMILLION)})


def _draw_image_size(axes: Axes, rows: History, stages: Sequence[Stage]) -> None:
    _draw_schedule(axes, stages, "train/image_size", GREEN)
    axes.set_ylabel("image\nsize (px)", size=9, color=INK)


def _draw_magnitude(axes: Axes, rows: History, stages: Sequence[Stage]) -> None:
    _draw_schedule(axes, stages, "train/randaugment_magnitude", PURPLE)
    axes.set_ylabel("RandAug.\nmagnitude", size=9, color=INK)


def _draw_schedule(axes: Axes, stages: Sequence[Stage], key: str, colour: str) -> None:
    """Draws a setting as steps that change exactly at the stage borders."""
    xs, ys = [np.empty(0)], [np.empty(0)]
    for stage in stages:
        steps, values = _series(stage.train, key)
        if steps.size:
            xs.append(np.concatenate([[stage.start], steps, [stage.end]]))
            ys.append(np.concatenate([values[:1], values, values[-1:]]))
    values = np.concatenate(ys)
    axes.step(
        np.concatenate(xs), values, where="pre", color=colour, linewidth=1.5, zorder=3,
        clip_on=False,
    )  # fmt: skip
    _set_limits(axes, values, zero=True, headroom=0.12)
    if np.isfinite(values).any():
        axes.set_yticks(_schedule_ticks(float(np.nanmin(values)), float(np.nanmax(values))))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")


def _schedule_ticks(low: float, high: float) -> list[float]:
    """Zero and the two ends of the schedule, as far as a flat panel has room for them."""
    room = 0.28 * high
    middle = [low] if room < low < high - room else []
    return sorted({0.0, *middle, high})


def _draw_throughput(axes: Axes, rows: History, stages: Sequence[Stage]) -> None:
    from matplotlib.ticker import MaxNLocator

    key, drawn, end = "train/images_per_second", [np.empty(0)], None
    for stage in stages:
        steps, values = _series(stage.train, key)
        drawn.append(values)
        axes.plot(steps, values, color=INK, linewidth=0.5, alpha=0.4, zorder=2)
        if np.isfinite(values).any():
            end = float(np.nanmedian(values))
            axes.plot([stage.start, stage.end], [end, end], color=INK, linewidth=1.4, zorder=3)
    _set_limits(axes, *drawn, zero=True)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_ylabel("images/s", size=9, color=INK)
    _label_ends(axes, {"median": (end, INK)})


def _last(values: np.ndarray) -> float | None:
    return float(values[-1]) if values.size else None


def _low(*arrays: np.ndarray) -> float:
    values = np.concatenate(arrays)
    return float(np.nanmin(values)) if np.isfinite(values).any() else 0.0


def _to_points(axes: Axes, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Data coordinates ``[n]``, ``[n]`` -> ``[n, 2]`` typographic points on the page."""
    pixels = axes.transData.transform(np.column_stack([x, y]))
    return pixels * POINTS_PER_INCH / axes.figure.dpi


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float | None, str]]) -> None:
    """Writes each curve's name in the right margin at the height where it ends."""
    size, gap = 8.5, 11.0
    named = sorted((end, name, colour) for name, (end, colour) in ends.items() if end is not None)
    if not named:
        return
    right = axes.get_xlim()[1]
    values = np.array([end for end, _, _ in named])
    natural = _to_points(axes, np.full(len(values), right), values)[:, 1]
    shift = np.zeros(len(values))
    if len(values) == 2 and natural[1] - natural[0] < gap:
        push = (gap - (natural[1] - natural[0])) / 2
        shift = np.array([-push, push])
    for (value, name, colour), offset in zip(named, shift, strict=True):
        axes.annotate(
            name, (right, value), xytext=(3, offset), textcoords="offset points", size=size,
            color=colour, va="center", annotation_clip=False,
        )  # fmt: skip


def _label_points(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    """Writes each value (%) beside its point, leaving out those that find no free place.

    The last point chooses first and the best one second: they are the ones a reader looks for.
    """
    from matplotlib.patheffects import withStroke

    if not values.size:
        return
    # Below a point there is the training curve: a place of need, and only while labels are few.
    few = values.size <= MANY_POINTS
    size, pad, offsets = (8.0, 1.0, (8.5, -8.5)) if few else (7.0, 4.0, (7.5,))
    points = _to_points(axes, steps, values)
    floor, ceiling = (_to_points(axes, steps[:1], np.array([y]))[0, 1] for y in axes.get_ylim())
    right = _to_points(axes, np.array(axes.get_xlim()[1:]), values[:1])[0, 0]
    order = dict.fromkeys([len(values) - 1, int(values.argmax()), *range(len(values))])
    taken: list[tuple[float, float, float, float]] = []
    for index in order:
        text = f"{values[index]:.1f}"
        for offset in offsets:
            half = GLYPH_WIDTH * size * len(text) / 2
            x, y = points[index]
            x = min(x, right - half + 2)
            y += offset
            box = (x - half - pad, y - size / 2, x + half + pad, y + size / 2)
            others = np.delete(points, index, axis=0)
            if box[1] < floor or box[3] > ceiling or _hits(box, taken, others):
                continue
            taken.append(box)
            axes.annotate(
                text, (steps[index], values[index]), xytext=(x - points[index, 0], offset),
                textcoords="offset points", size=size, color=VERMILLION, ha="center",
                va="center_baseline", zorder=6,
                path_effects=[withStroke(linewidth=2.2, foreground="white")],
            )  # fmt: skip
            break


def _hits(
    box: tuple[float, float, float, float],
    taken: Sequence[tuple[float, float, float, float]],
    points: np.ndarray,
) -> bool:
    """Whether the box (left, bottom, right, top) meets another box or one of ``points`` [n, 2]."""
    left, bottom, right, top = box
    radius = 2.0
    inside = (points[:, 0] > left - radius) & (points[:, 0] < right + radius)
    inside &= (points[:, 1] > bottom - radius) & (points[:, 1] < top + radius)
    return bool(inside.any()) or any(
        left < other[2] and other[0] < right and bottom < other[3] and other[1] < top
        for other in taken
    )


def _label_stages(axes: Axes, stages: Sequence[Stage]) -> None:
    """Writes number and image size over each stage, in the longest wording that fits them all."""
    if not stages:
        return
    ends = np.array([[stage.start, stage.end] for stage in stages], dtype=np.float64)
    flat = _to_points(axes, ends.ravel(), np.full(ends.size, axes.get_ylim()[0]))[:, 0]
    lefts, rights = flat.reshape(-1, 2).T
    middles, rooms = (lefts + rights) / 2, rights - lefts
    sizes = [_setting(stage, "train/image_size") for stage in stages]
    numbers = [str(stage.number) for stage in stages]
    long = [f"stage {n}\n{px} px" for n, px in zip(numbers, sizes, strict=True)]
    short = [f"{n}\n{px}" for n, px in zip(numbers, sizes, strict=True)]

    def widths(texts: Sequence[str], size: float) -> np.ndarray:
        glyphs = [max(map(len, text.split("\n"))) for text in texts]
        return GLYPH_WIDTH * size * np.array(glyphs, dtype=np.float64)

    single = len(stages) == 1
    if single or (widths(long, 8.0) + 4 <= rooms).all():
        texts, size, shown = long, 8.0, np.ones(len(stages), dtype=bool)
    else:
        texts, size = short, 7.0
        shown = _thin_out(middles, widths(short, size) + 4)
        axes.annotate(
            "stage\npx", (0, 1), xycoords="axes fraction", xytext=(-4, 6), size=size, color=GREY,
            textcoords="offset points", ha="right", va="bottom", linespacing=1.15,
        )  # fmt: skip
    for index in np.flatnonzero(shown):
        axes.annotate(
            texts[index], (ends[index].mean(), 1), xycoords=("data", "axes fraction"),
            xytext=(0, 6), textcoords="offset points", size=size, color=GREY, ha="center",
            va="bottom", linespacing=1.15, annotation_clip=False,
        )  # fmt: skip


def _thin_out(middles: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Which labels to keep, bool ``[n]``: every k-th with the smallest k without overlaps."""
    count = len(middles)
    for every in range(1, count + 1):
        kept = np.arange(0, count, every)
        room = np.diff(middles[kept])
        if (room >= (widths[kept][1:] + widths[kept][:-1]) / 2).all():
            break
    return np.isin(np.arange(count), kept)


def _markdown(
    rows: History, stages: Sequence[Stage], title: str, facts: Mapping[str, str], picture: str
) -> str:
    parts = [f"# {_cell(title)}"]
    if facts:
        parts.append(_table(["", ""], [[f"**{_cell(k)}**", _cell(v)] for k, v in facts.items()]))
    parts.append(f"![Loss, accuracy, image size, RandAugment and throughput]({picture})")
    if stages:
        parts += ["## Stages", _stage_table(stages), _reading_notes(rows)]
    return "\n\n".join(parts) + "\n"


def _reading_notes(rows: History) -> str:
    notes = [
        "Steps are the first and the last ones logged in a stage. Train loss is the last logged "
        "value; images/s is the median, which the slow first steps of a stage hardly move.",
        ACCURACY_NOTE,
    ]
    losses = [row["train/loss"] for row in rows if row.get("train/loss") is not None]
    bad = sum(not math.isfinite(loss) for loss in losses)
    if bad:
        notes.append(f"**{bad} of {len(losses)} logged training losses are not finite numbers.**")
    return "\n\n".join(notes)


def _stage_table(stages: Sequence[Stage]) -> str:
    header = [
        "stage", "steps", "image size (px)", "RandAugment", "dropout", "images/s", "train loss",
        "eval top-1 (%)", "eval top-5 (%)", "eval loss",
    ]  # fmt: skip
    return _table(header, [_stage_cells(stage) for stage in stages], right_aligned=True)


def _stage_cells(stage: Stage) -> list[str]:
    _, speeds = _series(stage.train, "train/images_per_second")
    speeds = speeds[np.isfinite(speeds)]
    speed = statistics.median(speeds.tolist()) if speeds.size else None
    return [
        str(stage.number),
        f"{stage.train[0]['step']}–{stage.end}",
        _setting(stage, "train/image_size"),
        _setting(stage, "train/randaugment_magnitude"),
        _setting(stage, "train/dropout_rate"),
        _number(speed, ".1f" if speed is not None and speed < 100 else ",.0f"),
        _number(_final(stage.train, "train/loss"), ".4f"),
        _number(_final(stage.evals, "eval/top1", 100.0), ".2f"),
        _number(_final(stage.evals, "eval/top5", 100.0), ".2f"),
        _number(_final(stage.evals, "eval/loss"), ".4f"),
    ]


def _final(rows: Iterable[Row], key: str, scale: float = 1.0) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return scale * values[-1] if values else None


def _setting(stage: Stage, key: str) -> str:
    """A setting's value in the stage, or its range where it changes within the stage."""
    _, values = _series(stage.train, key)
    values = values[np.isfinite(values)]
    if not values.size:
        return "–"
    low, high = (f"{value:.4g}" for value in (values.min(), values.max()))
    return low if low == high else f"{low}–{high}"


def _number(value: float | None, spec: str) -> str:
    if value is None:
        return "–"
    return format(value, spec) if math.isfinite(value) else str(value).replace("nan", "NaN")


def _table(
    header: Sequence[str], lines: Iterable[Sequence[str]], right_aligned: bool = False
) -> str:
    rule = ["---:" if right_aligned else "---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def _cell(text: str) -> str:
    """One line of text that cannot end a table cell early."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _write_png(path: Path, figure: Figure) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    temporary = _temporary(path)
    try:
        FigureCanvasAgg(figure).print_png(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    temporary = _temporary(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    # The same folder is the same file system, which os.replace needs to be atomic.
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
