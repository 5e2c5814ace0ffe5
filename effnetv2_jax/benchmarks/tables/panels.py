"""The points of the paper's Figures 1, 3 and 5, from tables that were written before."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from effnetv2_jax.benchmarks.tables.costs import MEASURED
from effnetv2_jax.benchmarks.tables.paper import TABLES
from effnetv2_jax.runtime.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Point:
    """A network.

    Attributes:
        label: Its name within its family, such as ``B3`` or ``S``.
        x: The place on the panel's x axis.
        top1: The published accuracy, in %.
    """

    label: str
    x: float
    top1: float


@dataclasses.dataclass(frozen=True)
class Series:
    """A family of networks.

    Attributes:
        family: The name of the family, such as ``EfficientNetV2``.
        ours: True if x is our figure, False if it is the published one.
        points: The points from small to large.
    """

    family: str
    ours: bool
    points: tuple[Point, ...]


@dataclasses.dataclass(frozen=True)
class Panel:
    """A diagram of published accuracies over another quantity.

    Attributes:
        x_label: The quantity and its unit.
        ours: The way our figures were found. Empty if the panel has none.
        series: The published series and ours.
    """

    x_label: str
    ours: str
    series: tuple[Series, ...]


_HOURS = ("7", "training on 32 TPUv3 cores", "training time on 32 TPUv3 cores, h")
_PARAMETERS = ("7", "parameters", "parameters, M")
_STEP = ("figure3", "step of 4096 images", "step of 4096 images on 32 TPUv3 cores, ms")
_FLOPS = ("7", "FLOPs", "multiply-adds, B")
_LATENCY = ("7", "latency", "latency of 16 images, ms")

FIGURES = {
    "figure1": ("Accuracy against training time and parameters", (_HOURS, _PARAMETERS)),
    "figure3": ("Accuracy against the time of a training step at the last image size", (_STEP,)),
    "figure5": (
        "Accuracy against parameters, multiply-adds and latency",
        (_PARAMETERS, _FLOPS, _LATENCY),
    ),
}
"""The title of each figure and, for each of its panels, the table, the beginning of the section's
title and the label of the x axis."""

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLORS = {
    "EfficientNetV2": "#D55E00",
    "EfficientNetV2 (21k)": "#CC79A7",
    "EfficientNet": "#0072B2",
    "NFNet": "#009E73",
    "ViT (21k)": "#56B4E9",
    "DeiT": "#E69F00",
    "ResNeSt": "#777777",
}
"""The families of Table 7 that are drawn, which is about the paper's choice, and their colours."""


def panels_of(figure: str, tables: Mapping[str, Mapping[str, Any]]) -> tuple[Panel, ...]:
    """Returns the panels of a figure.

    Args:
        figure: A name in ``FIGURES``.
        tables: The tables by name, as ``benchmark tables --json`` writes them.

    Raises:
        UsageError: If a table is missing.
    """
    panels: list[Panel] = []
    for table, title, x_label in FIGURES[figure][1]:
        if table not in tables:
            raise UsageError(f"{figure} needs table {table}, which the file does not hold")
        sections = [s for s in tables[table]["sections"] if s["title"].startswith(title)]
        # If there is one for each of several devices, the one with the most figures is drawn.
        sections.sort(key=lambda section: -len(_points(section, "ours")))
        if sections:
            panels += _panels(sections[0], x_label)
    return tuple(panels)


def _panels(section: Mapping[str, Any], x_label: str) -> list[Panel]:
    """Returns one panel, or two if ours was measured on another device than the published."""
    published, ours = (_series(section, side) for side in ("published", "ours"))
    how = sorted({row["ours"]["how"] for row in section["rows"] if _is_number(row["ours"])})
    here = [text for text in how if text.startswith(MEASURED.partition("{")[0])]
    if here and "V100" not in here[0]:
        return [
            Panel(f"{x_label}: published, V100", "", published),
            Panel(f"{x_label}: {here[0]}", ", ".join(how), ours),
        ]
    return [Panel(x_label, ", ".join(how), (*published, *ours))]


def _series(section: Mapping[str, Any], side: str) -> tuple[Series, ...]:
    families: dict[str, list[Point]] = {}
    for label, x in _points(section, side):
        top1 = TABLES["7"].figure(label, "top-1")
        family, short = family_of(label)
        if top1 is not None and family in COLORS:
            families.setdefault(family, []).append(Point(short, x, float(top1.value)))
    return tuple(
        Series(family, side == "ours", tuple(sorted(points, key=lambda point: point.x)))
        for family, points in families.items()
    )


def _points(section: Mapping[str, Any], side: str) -> list[tuple[str, float]]:
    rows = [row for row in section["rows"] if _is_number(row[side])]
    return [(row["label"], float(row[side]["value"])) for row in rows]


def _is_number(figure: Mapping[str, Any] | None) -> bool:
    return figure is not None and isinstance(figure["value"], int | float)


def family_of(label: str) -> tuple[str, str]:
    """Returns the family of a label, and the name within it.

    >>> family_of("EfficientNetV2-S (21k)")
    ('EfficientNetV2 (21k)', 'S')
    """
    base, _, remark = label.partition(" (")
    family, _, short = base.partition("-")
    if base == "EfficientNet-X":  # a network of another paper, not a larger EfficientNet
        family, short = base, ""
    return (f"{family} (21k)" if remark == "21k)" else family), short
