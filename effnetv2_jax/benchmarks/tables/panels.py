"""What the paper's Figures 1, 3 and 5 show, as points: from the tables that were written."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from effnetv2_jax.benchmarks.tables.comparison import MEASURED
from effnetv2_jax.benchmarks.tables.paper import TABLES
from effnetv2_jax.runtime.errors import UsageError

Section = Mapping[str, Any]
"""Of a table's JSON."""


@dataclasses.dataclass(frozen=True)
class Point:
    """Of a network.

    Attributes:
        label: within its family, such as ``B3`` or ``S``.
        x: as the panel has it.
        top1: published, %.
    """

    label: str
    x: float
    top1: float


@dataclasses.dataclass(frozen=True)
class Series:
    """A family of networks.

    Attributes:
        family: such as ``EfficientNetV2``.
        ours: whether x is ours, not the published.
        points: from small to large.
    """

    family: str
    ours: bool
    points: tuple[Point, ...]


@dataclasses.dataclass(frozen=True)
class Panel:
    """Published accuracy over something.

    Attributes:
        x_label: what, and its unit.
        ours: how ours was obtained; empty where the panel has none.
        series: published and ours.
    """

    x_label: str
    ours: str
    series: tuple[Series, ...]


@dataclasses.dataclass(frozen=True)
class FigurePlan:
    """A figure.

    Attributes:
        title: what it shows.
        panels: table, beginning of the section's title, and label of the axis, of each.
    """

    title: str
    panels: Sequence[tuple[str, str, str]]


HOURS = ("7", "training on 32 TPUv3 cores", "training time on 32 TPUv3 cores, h")
PARAMETERS = ("7", "parameters", "parameters, M")
FIGURES: Mapping[str, FigurePlan] = {
    "figure1": FigurePlan("Accuracy against training time and parameters", (HOURS, PARAMETERS)),
    "figure3": FigurePlan(
        "Accuracy against the time of a training step at the last image size",
        (("figure3", "step of 4096 images", "step of 4096 images on 32 TPUv3 cores, ms"),),
    ),
    "figure5": FigurePlan(
        "Accuracy against parameters, multiply-adds and latency",
        (
            PARAMETERS,
            ("7", "FLOPs", "multiply-adds, B"),
            ("7", "latency", "latency of 16 images, ms"),
        ),
    ),
}


FAMILIES = (
    "EfficientNetV2",
    "EfficientNetV2 (21k)",
    "EfficientNet",
    "NFNet",
    "ResNeSt",
    "DeiT",
    "ViT (21k)",
)
"""Of Table 7's, those that are drawn: about the paper's choice."""


def panels_of(figure: str, tables: Mapping[str, Mapping[str, Any]]) -> tuple[Panel, ...]:
    """The panels of a figure.

    Args:
        figure: a name in ``FIGURES``.
        tables: by name, as ``benchmark tables --json`` writes them.

    Raises:
        UsageError: where a table is missing.
    """
    panels: list[Panel] = []
    for table, title, x_label in FIGURES[figure].panels:
        if table not in tables:
            raise UsageError(f"{figure} needs table {table}, which the file does not hold")
        sections = [s for s in tables[table]["sections"] if s["title"].startswith(title)]
        # One that was asked of several devices says most where it was run.
        sections.sort(key=lambda section: -len(_points(section, ours=True)))
        if sections:
            panels += _panels(sections[0], x_label)
    return tuple(panels)


def _panels(section: Section, x_label: str) -> list[Panel]:
    """One; two where ours was measured on another device than the published."""
    published, ours = (_series(section, ours=ours) for ours in (False, True))
    how = sorted({row["ours"]["how"] for row in section["rows"] if _is_number(row["ours"])})
    here = [text for text in how if text.startswith(MEASURED.partition("{")[0])]
    if here and "V100" not in here[0]:
        return [
            Panel(f"{x_label}: published, V100", "", published),
            Panel(f"{x_label}: {here[0]}", ", ".join(how), ours),
        ]
    return [Panel(x_label, ", ".join(how), (*published, *ours))]


def _series(section: Section, *, ours: bool) -> tuple[Series, ...]:
    families: dict[str, list[Point]] = {}
    for label, x in _points(section, ours=ours):
        top1 = TABLES["7"].figure(label, "top-1")
        family, short = family_of(label)
        if top1 is not None and family in FAMILIES:
            families.setdefault(family, []).append(Point(short, x, float(top1.value)))
    return tuple(
        Series(family, ours, tuple(sorted(points, key=lambda point: point.x)))
        for family, points in families.items()
    )


def _points(section: Section, *, ours: bool) -> list[tuple[str, float]]:
    side = "ours" if ours else "published"
    return [
        (row["label"], float(row[side]["value"]))
        for row in section["rows"]
        if _is_number(row[side])
    ]


def _is_number(figure: Mapping[str, Any] | None) -> bool:
    return figure is not None and isinstance(figure["value"], int | float)


def family_of(label: str) -> tuple[str, str]:
    """Family and name within it: ``EfficientNetV2 (21k)``, ``S`` of ``EfficientNetV2-S (21k)``."""
    base, _, remark = label.partition(" (")
    family, _, short = base.partition("-")
    if base == "EfficientNet-X":  # somebody else's network, no larger EfficientNet
        family, short = base, ""
    return (f"{family} (21k)" if remark == "21k)" else family), short
