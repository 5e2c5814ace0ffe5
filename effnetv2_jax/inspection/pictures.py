"""The pictures of a report: confusions, calibration, and accuracy against image size."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from effnetv2_jax.data.sources.named_images import printable
from effnetv2_jax.inspection.statistics import Calibration, ClassScore, Confusions
from effnetv2_jax.training.observing import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CLASSES = 40
"""The largest number of classes that the picture of confusions shows one by one."""

_NAME_LETTERS = 24
_NAME_POINTS = 7.5
_LETTER_INCHES = style.GLYPH_WIDTH * _NAME_POINTS / style.POINTS_PER_INCH
_BARS_INCHES = 1.5
_SMALLEST_POINTS = 6.5
# With more image sizes, not each has its number.
_MANY_SIZES = 12


def draw_confusions(
    title: str, scores: Sequence[ClassScore], confusions: Confusions, names: Sequence[str]
) -> Figure:
    """Draws a matrix: a row for each class, with the share of its images taken for each class.

    Beside it are bars of the accuracy of each class. If there are more than ``MAX_CLASSES``
    classes, it shows those with the most mistakes, and all others as one.

    Args:
        title: The title.
        scores: The scores of all classes.
        confusions: The pairs of classes that occur.
        names: The names of all classes.
    """
    from matplotlib.figure import Figure

    present = [x for x in scores if x.images or x.predicted]
    shown = present
    if few := len(present) > MAX_CLASSES:
        by_mistakes = sorted(present, key=lambda x: 2 * x.correct - x.images - x.predicted)
        shown = sorted(by_mistakes[:MAX_CLASSES], key=lambda x: x.number)
    rows = len(shown)
    place = np.full(len(names), rows)
    place[[x.number for x in shown]] = np.arange(rows)
    counts = np.zeros((rows + 1, rows + 1), int)
    np.add.at(counts, (place[confusions.label], place[confusions.predicted]), confusions.count)
    counts = counts[:rows, : rows + few]
    labels = [_short(names[x.number]) for x in shown] + ["all others"] * few

    cell = 0.42 if rows <= 12 else 0.3
    longest = _LETTER_INCHES * max(map(len, labels))
    # Short names fit below their columns as they are.
    upright = longest > 0.8 * cell
    left, below = 0.5 + longest, 0.42 + (longest if upright else 0.1)
    top = 0.75
    wide, high = cell * counts.shape[1], cell * rows
    width, height = max(left + wide + 0.15 + _BARS_INCHES + 0.2, 5.2), top + high + below
    figure = Figure(figsize=(width, height), dpi=style.DPI, facecolor="white")
    box = (left / width, below / height, wide / width, high / height)
    axes = figure.add_axes(box)
    _draw_matrix(axes, counts, labels, cell, upright)
    bars = figure.add_axes(
        ((left + wide + 0.15) / width, box[1], _BARS_INCHES / width, box[3]), sharey=axes
    )
    _draw_bars(bars, shown)
    subtitle = "blue: right, orange: mistakes; colours are shares of a row, numbers are images"
    if few:
        subtitle = (
            f"the {rows} of {len(present)} classes with the most mistakes, which are in other "
            f"classes where grey; {subtitle}"
        )
    _head(figure, title, subtitle)
    return figure


def draw_calibration(title: str, calibration: Calibration) -> Figure:
    """Draws how often answers are right against how sure they are, and how many there are.

    Args:
        title: The title.
        calibration: The bins.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 6.2), dpi=style.DPI, facecolor="white")
    axes, below = figure.subplots(
        2,
        1,
        sharex=True,
        gridspec_kw={
            **{"height_ratios": (3.4, 1), "hspace": 0.1},
            **{"left": 0.17, "right": 0.95, "bottom": 0.09, "top": 0.84},
        },
    )
    filled = calibration.count > 0
    edges, widths = calibration.edges[:-1][filled], np.diff(calibration.edges)[filled]
    bars = {"width": 0.94 * widths, "align": "edge", "linewidth": 0}
    middles = edges + 0.47 * widths
    axes.bar(edges, calibration.accuracy[filled], color=style.BLUE, label="right answers", **bars)
    axes.hlines(
        calibration.confidence[filled],
        edges - 0.03 * widths,
        edges + 0.97 * widths,
        color=style.ORANGE,
        linewidth=3,
        label="mean probability",
    )
    axes.vlines(
        middles,
        calibration.accuracy[filled],
        calibration.confidence[filled],
        color=style.ORANGE,
        linewidth=1.2,
    )
    axes.plot([0, 1], [0, 1], color=style.GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0,
              label="as right as sure")  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.set_ylabel("share of right answers", size=9, color=style.INK)
    _legend_above(axes)
    below.bar(edges, calibration.count[filled] / calibration.count.sum(), color=style.SKY, **bars)
    below.set_ylabel("share of\nimages", size=9, color=style.INK)
    below.set_xlabel("probability of the likeliest class", size=9, color=style.INK)
    figure.align_ylabels()
    for part in (axes, below):
        _plain(part)
        part.yaxis.set_major_formatter(_percent)
        part.xaxis.set_major_formatter(_percent)
    mean = np.nansum(calibration.confidence * calibration.count) / calibration.count.sum()
    right = np.nansum(calibration.accuracy * calibration.count) / calibration.count.sum()
    sure = "too sure" if mean > right else "not sure enough"
    _head(
        figure,
        title,
        f"expected calibration error {100 * calibration.error:.1f} %: on average "
        f"{100 * mean:.1f} % sure and {100 * right:.1f} % right, {sure}",
    )
    return figure


def draw_sizes(
    title: str,
    by_size: Mapping[int, Mapping[str, float]],
    *,
    own_size: int,
    trained: tuple[float, float],
) -> Figure:
    """Draws top-1 and top-5 against the image size.

    Args:
        title: The title.
        by_size: The metrics of each image size.
        own_size: The size of the run's own evaluation.
        trained: The smallest and the largest image size in training.
    """
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    figure = Figure(figsize=(6.4, 4.0), dpi=style.DPI, facecolor="white")
    axes = figure.add_axes((0.11, 0.13, 0.85, 0.65))
    sizes = sorted(by_size)
    axes.axvspan(*trained, color=style.PALE, alpha=0.35, linewidth=0, label="sizes in training")
    axes.axvline(own_size, color=style.GREY, linewidth=0.9, linestyle=(0, (4, 3)),
                 label="the run's evaluation")  # fmt: skip
    best = max(sizes, key=lambda size: by_size[size]["top1"])
    lines = [("top1", style.BLUE, "top-1"), ("top5", style.SKY, "top-5")]
    # With up to five classes, the second line would say nothing.
    for name, colour, text in lines[: 2 - all(x["top5"] == 1 for x in by_size.values())]:
        values = [100 * by_size[size][name] for size in sizes]
        axes.plot(sizes, values, "o-", color=colour, markersize=4, linewidth=1.6, label=text)
    for size in sizes if len(sizes) <= _MANY_SIZES else [best]:
        top1 = 100 * by_size[size]["top1"]
        axes.annotate(
            f"{top1:.1f}",
            (size, top1),
            (0, 6),
            textcoords="offset points",
            ha="center",
            size=8,
            color=style.INK,
            weight="bold" if size == best else "normal",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
    axes.set_xticks(sizes)
    axes.margins(x=0.06, y=0.12)
    axes.set_ylabel("accuracy (%)", size=9, color=style.INK)
    axes.set_xlabel("side of the images in evaluation (px)", size=9, color=style.INK)
    _plain(axes)
    _legend_above(axes)
    _head(figure, title, "the same weights on images of other sizes")
    return figure


def _draw_matrix(
    axes: Axes, counts: np.ndarray, labels: Sequence[str], cell: float, upright: bool
) -> None:
    from matplotlib.colors import to_rgb

    rows, columns = counts.shape
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(rows, columns, dtype=bool)
    # A mistake is seldom, so that it is seen from a few percent on.
    strength = np.where(right, shares, np.sqrt(shares))[..., None]
    colours = np.where(right[..., None], to_rgb(style.BLUE), to_rgb(style.VERMILLION))
    colours[:, rows:] = to_rgb(style.GREY)  # all others
    axes.imshow(1 - strength * (1 - colours), aspect="equal", interpolation="nearest")
    points = min(7.5, 0.8 * cell * style.POINTS_PER_INCH / len(str(counts.max())) / 0.62)
    for row, column in np.argwhere(counts):
        colour = "white" if strength[row, column, 0] > 0.6 else style.INK
        axes.text(column, row, str(counts[row, column]), size=points, color=colour,
                  ha="center", va="center_baseline")  # fmt: skip
    font: dict[str, Any] = {"size": _NAME_POINTS, "parse_math": False, "color": style.INK}
    axes.set_xticks(range(columns), labels, rotation=90 * upright, **font)
    axes.set_yticks(range(rows), labels[:rows], **font)
    axes.set_xticks(np.arange(columns - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(rows - 1) + 0.5, minor=True)
    axes.grid(which="minor", color=style.PALE, linewidth=0.4)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set(color=style.PALE, linewidth=0.8)
    axes.set_ylabel("right class", size=9, color=style.INK)
    axes.set_xlabel("taken for", size=9, color=style.INK)


def _draw_bars(axes: Axes, scores: Sequence[ClassScore]) -> None:
    for row, score in enumerate(scores):
        if not score.images:
            axes.text(0.02, row, "no image", size=_NAME_POINTS, color=style.GREY, va="center")
            continue
        for length, colour in ((1.0, "#ECECEC"), (score.accuracy, style.BLUE)):
            axes.barh(row, length, 0.34, color=colour, linewidth=0)
        axes.text(1.04, row, f"{100 * score.accuracy:.0f} %", size=_NAME_POINTS, color=style.INK,
                  va="center")  # fmt: skip
    axes.set_xlim(0, 1.45)
    axes.set_title("accuracy", size=9, color=style.INK, loc="left", pad=4)
    axes.set_axis_off()
    axes.title.set_visible(True)


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=style.GREY, linewidth=0.8)
    axes.tick_params(labelsize=8, color=style.GREY, labelcolor=style.INK, width=0.8, length=3)


def _legend_above(axes: Axes) -> None:
    """Explains the colours in a row above the axes, where no data are."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=4,
        frameon=False,
        fontsize=8,
        borderaxespad=0.2,
        handlelength=1.6,
        columnspacing=1.4,
        labelcolor=style.INK,
    )


def _head(figure: Figure, title: str, subtitle: str) -> None:
    """Writes a title and a line below it, as large as the figure is wide."""
    width, height = figure.get_size_inches()
    for text, below, points, weight, colour in (
        (title, 0.12, 11.0, "bold", style.INK),
        (subtitle, 0.38, 8.0, "normal", style.GREY),
    ):
        room = (width - 0.3) * style.POINTS_PER_INCH / style.GLYPH_WIDTH
        size = max(_SMALLEST_POINTS, min(points, room / len(text)))
        text = textwrap.shorten(text, int(room / size), placeholder=" …")
        figure.text(0.15 / width, 1 - below / height, text, size=size, weight=weight,
                    color=colour, va="top", parse_math=False)  # fmt: skip


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _NAME_LETTERS else f"{name[: _NAME_LETTERS - 1].rstrip()}…"


def _percent(share: float, _: object) -> str:
    return f"{100 * share:.0f} %"
