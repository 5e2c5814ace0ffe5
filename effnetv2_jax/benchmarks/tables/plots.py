"""Draw Figures 1, 3 and 5 from the tables: ``python -m effnetv2_jax.benchmark plots``.

Published points are hollow, ours are filled. Accuracies are always the published ones. ``--tables``
is a JSON file that ``benchmark tables`` has written. PNG and SVG files go to ``--output``.
"""

import json
import pathlib
from collections.abc import Sequence

import matplotlib
from absl import flags
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from effnetv2_jax.benchmarks.tables.panels import COLORS, FIGURES, Panel, Series, panels_of
from effnetv2_jax.runtime.errors import UsageError, reason, unknown_name

TABLES = flags.DEFINE_string("tables", "docs/reproduction.json", "JSON file of benchmark tables.")
FIGURE = flags.DEFINE_list("figure", list(FIGURES), f"Figures to draw: {', '.join(FIGURES)}.")
OUTPUT = flags.DEFINE_string("output", "docs/figures", "Folder of the pictures; made if missing.")

_WIDTH, _HEIGHT = 5.6, 4.4  # inches, a panel


def main() -> None:
    for name in FIGURE.value:
        if name not in FIGURES:
            raise unknown_name("figure", name, FIGURES)
    tables = _read(pathlib.Path(TABLES.value))
    panels = {name: panels_of(name, tables) for name in FIGURE.value}
    folder = pathlib.Path(OUTPUT.value)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, found in panels.items():
            files = [folder / f"{name}{suffix}" for suffix in (".png", ".svg")]
            draw(FIGURES[name][0], found, files)
            print("\n".join(map(str, files)))
    except OSError as error:
        raise UsageError(f"--output {OUTPUT.value!r} cannot be written: {reason(error)}") from error


def _read(path: pathlib.Path) -> dict[str, dict]:
    try:
        found = json.loads(path.read_text())
        return {table["table"]: table for table in found["tables"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"--tables must be a JSON file written by benchmark tables, got {str(path)!r} ({error})"
        ) from error


def draw(title: str, panels: Sequence[Panel], files: Sequence[pathlib.Path]) -> None:
    """Draws one picture of all panels.

    Args:
        title: The title of the picture.
        panels: The panels from left to right.
        files: The files, whose suffixes name their kinds.
    """
    figure = Figure(figsize=(_WIDTH * len(panels), _HEIGHT), layout="constrained")
    figure.suptitle(title, fontsize=12 if len(panels) > 1 else 10)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_panel(axes, panel)
    # Without the date and random names, the same tables give the same SVG file.
    with matplotlib.rc_context({"svg.hashsalt": title}):
        for file in files:
            metadata = {"Date": None} if file.suffix == ".svg" else {}
            figure.savefig(file, dpi=150, metadata=metadata)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel("ImageNet top-1, published, %")
    axes.grid(True, which="major", color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    labelled: set[str] = set()
    for series in panel.series:
        _draw_line(axes, series, COLORS[series.family])
        # The published series and ours share their labels.
        if series.family not in labelled:
            _draw_labels(axes, series, COLORS[series.family])
        labelled.add(series.family)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.margins(x=0.12, y=0.08)
    if panel.series:
        texts = {False: "published", True: f"ours: {panel.ours}"}
        for ours in sorted({series.ours for series in panel.series}):
            _draw_line(axes, Series("", ours, ()), "black", label=texts[ours])
        axes.legend(loc="lower right", frameon=False, fontsize=8)


def _draw_line(axes: Axes, series: Series, color: str, label: str | None = None) -> None:
    axes.plot(
        [point.x for point in series.points],
        [point.top1 for point in series.points],
        linestyle="-" if series.ours else ":",
        linewidth=1.2,
        color=color,
        marker="o",
        markersize=5.5,
        markerfacecolor=color if series.ours else "white",
        markeredgecolor=color,
        zorder=3 if series.ours else 2,
        label=label,
    )


def _draw_labels(axes: Axes, series: Series, color: str) -> None:
    for point in series.points:
        axes.annotate(
            point.label,
            (point.x, point.top1),
            xytext=(4, -9),
            textcoords="offset points",
            fontsize=7,
            color=color,
        )
    last = series.points[-1]
    axes.annotate(
        series.family,
        (last.x, last.top1),
        xytext=(-4, 6),
        textcoords="offset points",
        ha="right" if len(series.points) > 1 else "center",
        fontsize=8.5,
        fontweight="bold",
        color=color,
    )
