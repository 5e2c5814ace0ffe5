"""The figures: which points are drawn, and that pictures hold them."""

import json
import re

import pytest
from PIL import Image

from effnetv2_jax.benchmarks.tables.panels import (
    FIGURES,
    Panel,
    Point,
    Series,
    family_of,
    panels_of,
)
from effnetv2_jax.runtime.errors import UsageError
from tests.benchmarks.commands import refusals, run


def row(label, published, ours, how="exact"):
    return {
        "label": label,
        "published": None if published is None else {"value": published},
        "ours": {"value": ours, "how": how},
    }


def tables(*rows, title="training on 32 TPUv3 cores"):
    parameters = [row("EfficientNetV2-S", 22, 21.5)]
    latency = [row("EfficientNetV2-S", 24, 900.0, "measured here (CPU)")]
    sections = (
        {"title": title, "rows": list(rows)},
        {"title": "parameters", "rows": parameters},
        {"title": "FLOPs", "rows": parameters},
        {"title": "latency, V100 fp16, batch 16; ours in float32", "rows": latency},
    )
    return {"7": {"table": "7", "sections": sections}}


@pytest.mark.parametrize(
    ("label", "family"),
    [
        ("EfficientNetV2-S", ("EfficientNetV2", "S")),
        ("EfficientNetV2-S (21k)", ("EfficientNetV2 (21k)", "S")),
        ("EfficientNet-B7", ("EfficientNet", "B7")),
        ("EfficientNet-X", ("EfficientNet-X", "")),
        ("DeiT-B-384 (ViT+reg)", ("DeiT", "B-384")),
        ("ViT-L/16 (21k)", ("ViT (21k)", "L/16")),
        ("NFNet-F4", ("NFNet", "F4")),
    ],
)
def test_a_label_is_of_a_family(label, family):
    assert family_of(label) == family


def test_points_are_hours_and_published_accuracies():
    hours, _ = panels_of(
        "figure1",
        tables(
            row("EfficientNetV2-M", 13, None, "not run"),
            row("EfficientNetV2-S", 7.1, 6.0, "XLA estimate for TPU v3"),
            row("RegNetY-8GF", 3, None, "not run"),
        ),
    )
    assert hours == Panel(
        "training time on 32 TPUv3 cores, h",
        "XLA estimate for TPU v3",
        (
            Series("EfficientNetV2", False, (Point("S", 7.1, 83.9), Point("M", 13.0, 85.1))),
            Series("EfficientNetV2", True, (Point("S", 6.0, 83.9),)),
        ),
    )


def test_what_does_not_fit_is_no_point():
    hours, _ = panels_of("figure1", tables(row("EfficientNetV2-S", 7.1, "out of memory")))
    assert [series.ours for series in hours.series] == [False]


def test_a_latency_of_another_device_has_a_panel_of_its_own():
    *_, published, ours = panels_of("figure5", tables())
    assert published.x_label == "latency of 16 images, ms: published, V100"
    assert ours.x_label == "latency of 16 images, ms: measured here (CPU)"
    assert [s.ours for s in published.series] == [False]
    assert [s.ours for s in ours.series] == [True]


def test_a_table_that_is_missing_is_named():
    with pytest.raises(UsageError, match="figure3 needs table figure3"):
        panels_of("figure3", tables())


@pytest.mark.parametrize(("ours", "fill"), [(False, "#ffffff"), (True, "#d55e00")])
def test_published_points_are_hollow_and_ours_filled(tmp_path, ours, fill):
    from effnetv2_jax.benchmarks.tables.plots import draw

    series = Series("EfficientNetV2", ours, (Point("S", 10.0, 84.0),))
    for name in ("a.svg", "b.svg"):
        draw("title", [Panel("x", "exact", (series,))], [tmp_path / name])
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    markers = re.findall(r"fill: (#\w+); stroke: #d55e00", text)
    assert markers and set(markers) == {fill}


def test_every_figure_is_drawn_as_png_and_svg(tmp_path):
    found = tables(row("EfficientNetV2-S", 7.1, 6.0, "XLA estimate for TPU v3"))
    step = [
        {"title": "step of 4096 images on 32 cores", "rows": [row("EfficientNetV2-S", None, 9.0)]}
    ]
    listed = [*found.values(), {"table": "figure3", "sections": step}]
    (tmp_path / "t.json").write_text(json.dumps({"tables": listed}))
    (tmp_path / "figures").mkdir()  # it may exist
    done = run("plots", f"--tables={tmp_path / 't.json'}", f"--output={tmp_path / 'figures'}")
    assert done.returncode == 0, done.stderr
    for name in FIGURES:
        with Image.open(tmp_path / "figures" / f"{name}.png") as image:
            assert image.width > 500
        svg = (tmp_path / "figures" / f"{name}.svg").read_text()
        assert svg.startswith("<?xml") and "dc:date" not in svg


def test_what_cannot_be_used_is_named():
    figure, tables = refusals("tables.plots", [{"figure": "figure2"}, {"tables": "/nowhere.json"}])
    assert "unknown figure 'figure2': did you mean" in figure
    assert "--tables must be a JSON file written by benchmark tables" in tables
