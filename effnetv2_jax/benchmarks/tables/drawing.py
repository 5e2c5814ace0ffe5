"""Draws panels: published points hollow, ours filled, families labelled where they end."""

import pathlib
from collections.abc import Sequence

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from effnetv2_jax.benchmarks.tables.panels import Panel, Series

# Okabe and Ito's, told apart by the colour-blind and in grey.
_COLORS = {
    "EfficientNetV2": "#D55E00",
    "EfficientNetV2 (21k)": "#CC79A7",
    "EfficientNet": "#0072B2",
    "NFNet": "#009E73",
    "ViT (21k)": "#56B4E9",
    "DeiT": "#E69F00",
    "ResNeSt": "#777777",
}
_WIDTH, _HEIGHT = 5.6, 4.4  # inches, a panel


def draw(title: str, panels: Sequence[Panel], files: Sequence[pathlib.Path]) -> None:
    """Writes one picture of all panels into each file, of the kind that its suffix names."""
    figure = Figure(figsize=(_WIDTH * len(panels), _HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12 if len(panels) > 1 else 10)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_panel(axes, panel)
    for file in files:
        # Without the date, so that the same tables give the same file.
        metadata = {"Date": None} if file.suffix == ".svg" else {}
        figure.savefig(file, dpi=150, metadata=metadata)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel("ImageNet top-1, published, %")
    axes.grid(True, which="major", color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    for series in panel.series:
        _draw_series(axes, series)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.margins(x=0.12, y=0.08)
    if panel.series:
        _draw_key(axes, panel)


def _draw_series(axes: Axes, series: Series) -> None:
    color = _COLORS[series.family]
    xs = [point.x for point in series.points]
    ys = [point.top1 for point in series.points]
    axes.plot(
        xs,
        ys,
        linestyle="-" if series.ours else ":",
        linewidth=1.2,
        color=color,
        marker="o",
        markersize=5.5,
        markerfacecolor=color if series.ours else "white",
        markeredgecolor=color,
        zorder=3 if series.ours else 2,
    )
    if _labelled(axes, series.family):
        return
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


def _labelled(axes: Axes, family: str) -> bool:
    """Whether the family has its labels, as the published and ours share them."""
    return family in [text.get_text() for text in axes.texts]


def _draw_key(axes: Axes, panel: Panel) -> None:
    kinds = {series.ours for series in panel.series}
    texts = {False: "published", True: f"ours: {panel.ours}"}
    for ours in sorted(kinds):
        axes.plot(
            [],
            [],
            linestyle="-" if ours else ":",
            color="black",
            marker="o",
            markersize=5.5,
            markerfacecolor="black" if ours else "white",
            label=texts[ours],
        )
    axes.legend(loc="lower right", frameon=False, fontsize=8)
