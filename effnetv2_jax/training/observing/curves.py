"""Draws a run's history as panels below each other: losses, accuracies, settings, throughput."""

import dataclasses
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from effnetv2_jax.training.observing import style
from effnetv2_jax.training.observing.reading import (
    History,
    StageRows,
    evaluation_names,
    last,
    series,
    setting,
)

_FIGURE_INCHES = (8.0, 9.0)
_EVAL_COLOURS = (style.VERMILLION, style.PURPLE, style.GREEN, style.ORANGE, style.SKY, style.INK)
# If there are more stages or evaluations, they are drawn lighter, and not all are labelled.
_MANY_POINTS = 12
# Longer names of evaluations are cut off: the right margin holds no more letters.
_NAME_LETTERS = 13


def draw(rows: History, stages: Sequence[StageRows], title: str, *, note: str) -> Figure:
    """Draws the panels that the history has numbers for, one below the other.

    Args:
        rows: The history, sorted by step.
        stages: The same rows by stage.
        title: The heading.
        note: A sentence for the caption, if there is a training accuracy.
    """
    names = evaluation_names(rows)
    losses, accuracies = ([f"{name}/{metric}" for name in names] for metric in ("loss", "top1"))
    size, magnitude = (
        partial(_draw_setting, colour=style.GREEN),
        partial(_draw_setting, colour=style.PURPLE),
    )
    panels: list[tuple[float, str, list[str], Callable[..., None]]] = [
        (3.0, "loss", ["train/loss", *losses], _draw_loss),
        (3.0, "top-1 accuracy (%)", ["train/accuracy", *accuracies], _draw_accuracy),
        (1.05, "image\nsize (px)", ["train/image_size"], size),
        (1.05, "RandAug.\nmagnitude", ["train/randaugment_magnitude"], magnitude),
        (1.5, "images/s", ["train/images_per_second"], _draw_throughput),
    ]
    panels = [panel for panel in panels if any(key in row for key in panel[2] for row in rows)]
    figure = Figure(figsize=_FIGURE_INCHES, dpi=style.DPI, facecolor="white")
    heading = textwrap.shorten(title, width=70, placeholder=" …")
    figure.text(
        0.02, 0.982, heading, size=13 if len(heading) <= 58 else 11, weight="bold", color=style.INK,
        va="top", parse_math=False,
    )  # fmt: skip
    if not panels:
        figure.text(0.5, 0.5, "No curves to draw", color=style.GREY, ha="center")
        return figure

    margin = 0.085 if all(len(name) <= 8 for name in names) else 0.13
    all_axes = figure.subplots(
        len(panels),
        1,
        sharex=True,
        squeeze=False,
        gridspec_kw={
            "height_ratios": [panel[0] for panel in panels],
            "left": 0.122, "right": 1 - margin, "bottom": 0.108, "top": 0.902, "hspace": 0.14,
        },
    )[:, 0]  # fmt: skip
    first, last = float(rows[0]["step"]), float(rows[-1]["step"])
    pad = 0.008 * (last - first) or 1.0
    all_axes[0].set_xlim(first - pad, last + pad)
    for axes, (_, label, keys, panel) in zip(all_axes, panels, strict=True):
        _style(axes, stages)
        panel(axes, rows, stages, keys[0])
        axes.set_ylabel(label, size=9, color=style.INK)
    _label_stages(all_axes[0], stages)
    all_axes[-1].set_xlabel("step", size=9, color=style.INK)
    figure.align_ylabels(all_axes)
    caption = "\n".join(textwrap.wrap(_caption(rows, stages, note), width=132))
    figure.text(0.02, 0.012, caption, size=7.3, color=style.GREY, va="bottom", linespacing=1.35)
    return figure


def _caption(rows: History, stages: Sequence[StageRows], note: str) -> str:
    parts = []
    if any("train/accuracy" in row for row in rows):
        parts.append(note)
    width = _smoothing_width(stages)
    if width > 1:
        parts.append(f"Pale: as logged; strong: mean of {width} logged values.")
    if any("train/images_per_second" in row for row in rows):
        parts.append("Images/s: median per stage.")
    return " ".join(parts)


def _style(axes: Axes, stages: Sequence[StageRows]) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=style.GREY, linewidth=0.8)
    axes.tick_params(labelsize=8, color=style.GREY, labelcolor=style.INK, width=0.8, length=3)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    width = 0.8 if len(stages) <= _MANY_POINTS else 0.4
    for stage in stages[1:]:
        axes.axvline(stage.start, color=style.PALE, linewidth=width, zorder=0)


def _set_limits(axes: Axes, *arrays: np.ndarray, zero: bool, headroom: float = 0.06) -> None:
    """Fits the y axis to the finite values, with a share of their range as headroom above them."""
    values = np.concatenate(arrays)
    values = values[np.isfinite(values)]
    if not values.size:
        axes.set_yticks([])
        return
    low, high = float(values.min()), float(values.max())
    if zero:
        low = min(low, 0.0)
    span = (high - low) or abs(high) or 1.0
    axes.set_ylim(low if zero else low - 0.06 * span, high + headroom * span)


def _smoothing_width(stages: Sequence[StageRows]) -> int:
    """Returns the moving mean's window in logged values: odd, and 1 for a short run."""
    return 2 * (sum(len(stage.train) for stage in stages) // 120) + 1


def _moving_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Returns the centred means over up to ``width`` finite neighbours, [n]; NaN stays NaN."""
    if not values.size:  # all steps of the stage were left out
        return values
    finite, half = np.isfinite(values), width // 2
    # Not np.convolve: its "same" mode returns the window's length for a stage shorter than that.
    padded = np.pad(np.stack([np.where(finite, values, 0.0), finite]), [(0, 0), (half, half)])
    totals, counts = np.lib.stride_tricks.sliding_window_view(padded, width, axis=1).sum(-1)
    return np.where(finite, totals / np.maximum(counts, 1), np.nan)


def _draw_train(
    axes: Axes, stages: Sequence[StageRows], key: str, scale: float
) -> tuple[np.ndarray, dict[str, tuple[float | None, str]]]:
    """Draws the training line, broken at stage borders; returns its values and its end."""
    width, drawn, end = _smoothing_width(stages), [], None
    for stage in stages:
        steps, values = series(stage.train, key)
        values = scale * values
        smooth = _moving_mean(values, width)
        if width > 1:
            axes.plot(steps, values, color=style.BLUE, linewidth=0.5, alpha=0.35, zorder=2)
        # A line through one point is invisible, so a stage with few of them gets dots.
        marker = "o" if len(steps) < 3 else ""
        axes.plot(
            steps, smooth, color=style.BLUE, linewidth=1.4, zorder=3, marker=marker, markersize=1.8
        )
        drawn.append(values)
        good = np.flatnonzero(np.isfinite(smooth))
        if good.size:
            end = float(smooth[good[-1]])
    return np.concatenate([np.empty(0), *drawn]), {"train": (end, style.BLUE)}


@dataclasses.dataclass(frozen=True)
class _Points:
    """The results of one evaluation: finite values [n] of a metric at the steps [n]."""

    name: str
    colour: str
    steps: np.ndarray
    values: np.ndarray

    @property
    def end(self) -> tuple[float | None, str]:
        """The last value, None if there is none, and the colour."""
        return (float(self.values[-1]) if self.values.size else None), self.colour


def _draw_evals(axes: Axes, rows: History, metric: str, scale: float) -> list[_Points]:
    """Draws the points of all evaluations; a thin line connects them if there are several."""
    names = evaluation_names(rows)
    drawn = []
    for index, name in enumerate(names):
        steps, values = series(rows, f"{name}/{metric}")
        good = np.isfinite(values)
        short = name if len(name) <= _NAME_LETTERS else f"{name[: _NAME_LETTERS - 1]}…"
        colour = _EVAL_COLOURS[index % len(_EVAL_COLOURS)]
        points = _Points(short, colour, steps[good], scale * values[good])
        axes.scatter(
            points.steps, points.values, s=22 if good.sum() <= _MANY_POINTS else 10,
            color=colour, edgecolor="white", linewidth=0.5, zorder=5, clip_on=False,
        )  # fmt: skip
        if len(names) > 1:
            axes.plot(points.steps, points.values, color=colour, linewidth=0.8, zorder=4)
        drawn.append(points)
    return drawn


def _draw_loss(axes: Axes, rows: History, stages: Sequence[StageRows], key: str) -> None:
    train, ends = _draw_train(axes, stages, key, 1.0)
    evals = _draw_evals(axes, rows, "loss", 1.0)
    _set_limits(axes, train, *(points.values for points in evals), zero=False)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    _label_ends(axes, ends | {points.name: points.end for points in evals})


def _draw_accuracy(axes: Axes, rows: History, stages: Sequence[StageRows], key: str) -> None:
    train, ends = _draw_train(axes, stages, key, 100.0)
    evals = _draw_evals(axes, rows, "top1", 100.0)
    values = np.concatenate([train, *(points.values for points in evals)])
    headroom = 0.13 if any(points.values.size for points in evals) else 0.06
    low = np.min(values, where=np.isfinite(values), initial=100.0)
    _set_limits(axes, values, zero=low < 30, headroom=headroom)
    # The headroom is for the labels: there is no accuracy above 100 % to mark a tick for.
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= min(high, 100)])
    _label_points(axes, evals)
    _label_ends(axes, ends | {points.name: points.end for points in evals})


def _draw_setting(
    axes: Axes, rows: History, stages: Sequence[StageRows], key: str, colour: str
) -> None:
    """Draws a setting as steps that change exactly at the stage borders."""
    steps = np.array([[stage.start, stage.end] for stage in stages], np.float64)
    values = np.array([[last(stage.train, key)] * 2 for stage in stages], np.float64)
    axes.step(
        steps.ravel(), values.ravel(), where="pre", color=colour, linewidth=1.5, zorder=3,
        clip_on=False,
    )  # fmt: skip
    values = values.ravel()
    _set_limits(axes, values, zero=True, headroom=0.12)
    if np.isfinite(values).any():
        low, high = np.nanmin(values), np.nanmax(values)
        # Zero and the two ends, unless the lower one lies too close to the others.
        axes.set_yticks(sorted({0.0, *([low] if 0.28 * high < low < 0.72 * high else []), high}))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")


def _draw_throughput(axes: Axes, rows: History, stages: Sequence[StageRows], key: str) -> None:
    drawn, end = [np.empty(0)], None
    for stage in stages:
        steps, values = series(stage.train, key)
        drawn.append(values)
        axes.plot(steps, values, color=style.INK, linewidth=0.5, alpha=0.4, zorder=2)
        if np.isfinite(values).any():
            end = float(np.nanmedian(values))
            axes.plot(
                [stage.start, stage.end], [end, end], color=style.INK, linewidth=1.4, zorder=3
            )
    _set_limits(axes, *drawn, zero=True)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    _label_ends(axes, {"median": (end, style.INK)})


def _to_points(axes: Axes, x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Turns data coordinates, [n] each, into typographic points on the page, [n, 2]."""
    pixels = axes.transData.transform(np.column_stack([x, y]))
    return pixels * style.POINTS_PER_INCH / axes.figure.dpi


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float | None, str]]) -> None:
    """Writes each curve's name in the right margin at the height where it ends."""
    size, gap = 8.5, 11.0
    named = sorted((end, name, colour) for name, (end, colour) in ends.items() if end is not None)
    if not named:
        return
    right = axes.get_xlim()[1]
    values = np.array([end for end, _, _ in named])
    natural = _to_points(axes, np.full(len(values), right), values)[:, 1]
    # Labels that would overlap move up, from the lowest one. Then all move down by the mean of
    # these moves, so that no curve's label is further from its end than it has to be.
    offsets = gap * np.arange(len(natural))
    shift = np.maximum.accumulate(natural - offsets) + offsets - natural
    shift -= shift.mean()
    for (value, name, colour), offset in zip(named, shift, strict=True):
        axes.annotate(
            name, (right, value), xytext=(3, offset), textcoords="offset points", size=size,
            color=colour, va="center", annotation_clip=False,
        )  # fmt: skip


def _label_points(axes: Axes, evals: Sequence[_Points]) -> None:
    """Writes each value (%) beside its point, leaving out those that find no free place.

    The last point of an evaluation chooses first and its best one second: they are the ones a
    reader looks for.
    """
    evals = [points for points in evals if points.values.size]
    if not evals:
        return
    # Below a point there is the training curve, so labels go there only while they are few.
    few = sum(points.values.size for points in evals) <= _MANY_POINTS
    size, pad, offsets = (8.0, 1.0, (8.5, -8.5)) if few else (7.0, 4.0, (7.5,))
    floor, ceiling = (_to_points(axes, [0.0], [y])[0, 1] for y in axes.get_ylim())
    right = _to_points(axes, [axes.get_xlim()[1]], [0.0])[0, 0]
    dots = [_to_points(axes, points.steps, points.values) for points in evals]
    taken: list[Bbox] = []
    for number, points in enumerate(evals):
        last, best = len(points.values) - 1, int(points.values.argmax())
        for index in dict.fromkeys([last, best, *range(last)]):
            text = f"{points.values[index]:.1f}"
            others = [np.delete(x, index, 0) if i == number else x for i, x in enumerate(dots)]
            for offset in offsets:
                half = style.GLYPH_WIDTH * size * len(text) / 2
                dot_x, y = dots[number][index]
                x, y = min(dot_x, right - half + 2), y + offset
                box = Bbox([[x - half - pad, y - size / 2], [x + half + pad, y + size / 2]])
                hits = box.count_overlaps(taken) or box.padded(2).count_contains(
                    np.concatenate(others)
                )
                if box.y0 < floor or box.y1 > ceiling or hits:
                    continue
                taken.append(box)
                axes.annotate(
                    text, (points.steps[index], points.values[index]), xytext=(x - dot_x, offset),
                    textcoords="offset points", size=size, color=points.colour, ha="center",
                    va="center_baseline", zorder=6,
                    path_effects=[withStroke(linewidth=2.2, foreground="white")],
                )  # fmt: skip
                break


def _label_stages(axes: Axes, stages: Sequence[StageRows]) -> None:
    """Writes number and image size above each stage, in the longest wording that fits for all."""
    if not stages:
        return
    ends = np.array([[stage.start, stage.end] for stage in stages], dtype=np.float64)
    flat = _to_points(axes, ends.ravel(), np.full(ends.size, axes.get_ylim()[0]))[:, 0]
    lefts, rights = flat.reshape(-1, 2).T
    middles, rooms = (lefts + rights) / 2, rights - lefts
    pairs = [(stage.number, setting(stage, "train/image_size")) for stage in stages]
    long = [f"stage {number}\n{px} px" for number, px in pairs]
    short = [f"{number}\n{px}" for number, px in pairs]

    def widths(texts: Sequence[str], size: float) -> np.ndarray:
        glyphs = [max(map(len, text.split("\n"))) for text in texts]
        return style.GLYPH_WIDTH * size * np.array(glyphs, dtype=np.float64)

    if len(stages) == 1 or (widths(long, 8.0) + 4 <= rooms).all():
        texts, size, shown = long, 8.0, np.ones(len(stages), dtype=bool)
    else:
        texts, size = short, 7.0
        shown = _thin_out(middles, widths(short, size) + 4)
        axes.annotate(
            "stage\npx", (0, 1), xycoords="axes fraction", xytext=(-4, 6), size=size,
            color=style.GREY, textcoords="offset points", ha="right", va="bottom", linespacing=1.15,
        )  # fmt: skip
    for index in np.flatnonzero(shown):
        axes.annotate(
            texts[index], (ends[index].mean(), 1), xycoords=("data", "axes fraction"),
            xytext=(0, 6), textcoords="offset points", size=size, color=style.GREY, ha="center",
            va="bottom", linespacing=1.15, annotation_clip=False,
        )  # fmt: skip


def _thin_out(middles: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Returns the labels to keep, bool [n]: every k-th with the smallest k without overlaps."""
    count = len(middles)
    for every in range(1, count + 1):
        kept = np.arange(0, count, every)
        room = np.diff(middles[kept])
        if (room >= (widths[kept][1:] + widths[kept][:-1]) / 2).all():
            break
    return np.isin(np.arange(count), kept)
