"""The paper's tables, ours beside theirs: what is compared, asked, found and said."""

import json
from types import SimpleNamespace

import jax
import pytest
from scipy import stats

from effnetv2_jax.benchmarks.tables import costs as table_costs
from effnetv2_jax.benchmarks.tables import quantities
from effnetv2_jax.benchmarks.tables.comparison import (
    Comparison,
    Section,
    compare,
    count_rows,
)
from effnetv2_jax.benchmarks.tables.costs import (
    EXACT,
    NOT_RUN,
    Cost,
    LocalCosts,
    Ours,
    TpuCosts,
    not_run,
    topology_of,
)
from effnetv2_jax.benchmarks.tables.paper import OUT_OF_MEMORY, TABLES, TOTAL_STEPS, Figure, Row
from effnetv2_jax.benchmarks.tables.plans import PLANS
from effnetv2_jax.benchmarks.tables.printing import as_json, as_markdown
from effnetv2_jax.benchmarks.timing.timed_model import CompiledModel
from effnetv2_jax.models import get_spec
from effnetv2_jax.runtime.errors import UsageError
from tests.benchmarks.commands import refusals, run

HOW = "XLA estimate for TPU v3"


@pytest.fixture(autouse=True)
def made_up_counts(monkeypatch):
    """Counting a model takes a second; test_counts.py does it."""

    def model_info(model):
        size = get_spec(model).eval_size
        return SimpleNamespace(parameters=1e6, multiply_adds=1e9, image_size=size, eval_size=size)

    monkeypatch.setattr(quantities, "_model_info", model_info)


class MadeUpCosts:
    """A device on which an image takes its pixels in nanoseconds."""

    name = "tpu:made up"
    inference_dtypes = ("float16", "float32")

    def __init__(self, *, name="tpu:made up", fits=lambda model, image_size: True):
        self.name = name
        self.fits = fits
        self.asked = []

    def train_step(self, model, *, image_size, batch_size, parts=1, mixing=False):
        self.asked.append((model, image_size, batch_size, parts, mixing))
        if not self.fits(model, image_size):
            return Cost(HOW, batch_size)
        seconds = batch_size * image_size**2 * 1e-9
        return Cost(HOW, batch_size, seconds, note="made up")

    def inference(self, model, *, image_size, batch_size, dtype):
        self.asked.append((model, image_size, batch_size, dtype))
        seconds = batch_size * image_size**2 * 1e-9 * (1 if dtype == "float16" else 2)
        return Cost(HOW, batch_size, seconds, low=seconds / 2, high=seconds * 2)


def pair(published, ours, attested=1):
    return Comparison("a", None, Figure(published, "h", attested), Ours(ours, HOW))


# --- comparison


@pytest.mark.parametrize(
    ("published", "ours", "agrees"),
    [
        (12, 12.23, True),  # 1.9 % off, but rounds to 12
        (12.0, 12.23, False),
        (12.0, 12.1, True),  # within 1 %
        (22, 21.4, False),
        (100.0, 101.0, True),
        (100.0, 101.2, False),
        (0.72, 0.724, True),  # rounds to 0.72
        (0.72, 0.73, False),
    ],
)
def test_ours_agrees_within_a_share_or_by_rounding(published, ours, agrees):
    assert pair(published, ours).agrees(0.01) is agrees


def test_what_was_not_run_or_does_not_fit_has_no_ratio():
    assert pair(42, None).ratio is None
    assert pair(42, OUT_OF_MEMORY).ratio is None
    assert pair(OUT_OF_MEMORY, 42.0).ratio is None
    assert Comparison("a", None, None, Ours(1.0, EXACT)).ratio is None
    assert pair(42, 21.0).ratio == 0.5


def test_verdicts_count_rows_that_say_something():
    rows = (
        pair(OUT_OF_MEMORY, OUT_OF_MEMORY),
        pair(OUT_OF_MEMORY, 7.0),
        pair(42, 50.0),
        pair(42, OUT_OF_MEMORY),
        pair(42, None),
    )
    assert Section("", "", rows).verdicts == (2, 4)
    assert Section("", "", rows[2:]).verdicts is None  # none was published as out of memory


def test_the_rank_correlation_is_scipys():
    ours = (3.0, 1.0, 2.0, 5.0, 4.0)
    section = Section("", "h", tuple(pair(n, x) for n, x in enumerate(ours)))
    assert section.rank_correlation == pytest.approx(stats.spearmanr(range(5), ours).statistic)
    assert Section("", "h", section.rows[:2]).rank_correlation is None
    assert Section("", "h", (pair(1, 1.0),) * 4).rank_correlation is None


def test_rows_are_relative_to_the_first_that_has_both():
    rows = (pair(10, None), pair(20, 5.0), pair(30, 10.0))
    section = Section("", "h", rows)
    assert section.relative(rows[0]) is None
    assert section.relative(rows[1]) == (1, 1)
    assert section.relative(rows[2]) == (1.5, 2)


# --- what is asked


def table(name, *sources, models=None, rows=None):
    rows = [] if rows is None else rows
    return compare(PLANS[name], sources, models=models, on_row=rows.append)


def section(found, beginning):
    (only,) = [section for section in found if section.title.startswith(beginning)]
    return only


def test_table_2_has_its_sizes_and_batches():
    costs = MadeUpCosts(fits=lambda model, image_size: image_size < 512)
    found = table("2", costs)
    assert costs.asked == [
        ("efficientnet-b6", size, batch, 1, False) for batch in (32, 128) for size in (512, 380)
    ]
    batch_128 = section(found, "TPUv3 core, batch 128")
    assert [row.ours.value for row in batch_128.rows] == [
        OUT_OF_MEMORY,
        pytest.approx(1e9 / 380**2),
    ]
    assert batch_128.verdicts == (2, 2)
    assert {row.ours.how for row in section(found, "V100, batch 12").rows} == {NOT_RUN}


def test_what_was_published_of_a_gpu_is_measured():
    local = MadeUpCosts(name="local")
    table("2", local)
    assert {batch for _, _, batch, *_ in local.asked} == {32, 128, 12, 24}


def test_inference_is_asked_in_each_dtype_at_the_evaluation_size():
    local = MadeUpCosts(name="local")
    found = table("11", local, models=["efficientnetv2-b0", "efficientnet-b4"])
    assert local.asked == [
        (model, size, 128, dtype)
        for dtype in ("float16", "float32")
        for model, size in (("efficientnetv2-b0", 224), ("efficientnet-b4", 380))
    ]
    half, single = (s for s in found if s.title.startswith("throughput"))
    assert half.title.endswith("ours in float16") and single.title.endswith("ours in float32")
    b0, _ = half.rows
    assert b0.ours.value == pytest.approx(1e9 / 224**2)
    assert (b0.ours.low, b0.ours.high) == pytest.approx((0.5e9 / 224**2, 2e9 / 224**2))


def test_a_device_that_has_nothing_to_say_gets_no_table():
    tpu, local = TpuCosts("v3:4x4", compile_new=False), MadeUpCosts(name="local")
    found = table("11", tpu, local, models=["efficientnetv2-b0"])
    assert [s.title for s in found if s.title.startswith("throughput")] == [
        "throughput, V100 fp16, batch 128; ours in float16 (local)",
        "throughput, V100 fp16, batch 128; ours in float32 (local)",
    ]
    assert len([s for s in found if s.title == "parameters"]) == 1
    alone = table("11", tpu, models=["efficientnetv2-b0"])
    assert section(alone, "throughput").rows[0].ours.how == NOT_RUN


def test_rows_are_counted_before_they_are_found():
    for name in ("2", "8", "figure1"):
        sources, rows = (MadeUpCosts(), MadeUpCosts(name="local")), []
        table(name, *sources, rows=rows)
        assert len(rows) == count_rows(PLANS[name], sources)


def test_rows_outside_the_zoo_are_there_and_not_run():
    found = section(table("7", MadeUpCosts()), "training on 32 TPUv3 cores")
    nfnet = {row.label: row for row in found.rows}["NFNet-F4"]
    assert (nfnet.published.value, nfnet.ours) == (126, not_run("not in the zoo"))
    assert len(found.rows) == len(TABLES["7"].rows)


def test_what_has_no_published_figure_is_not_run():
    costs = MadeUpCosts()
    found = section(table("7", costs, models=["deit-b"]), "training on 32")
    assert found.rows[0].ours == not_run("the paper has no figure here")
    assert not [asked for asked in costs.asked if len(asked) == 5]  # no training step


def test_the_same_is_asked_once(monkeypatch):
    asked = []

    def recorded_step(step, *, topology, batch_per_core, **_):
        asked.append((step, topology, batch_per_core))

    monkeypatch.setattr(table_costs, "recorded_step", recorded_step)
    costs = TpuCosts("v3:4x4", compile_new=False)
    for _ in range(2):
        cost = costs.train_step("efficientnet-b4", image_size=8, batch_size=2)
        assert (cost.how, cost.note) == (NOT_RUN, "was not compiled for this TPU before")
    ((step, *others),) = asked
    assert (step.model, step.image_size, step.bn_group_size) == ("efficientnet-b4", 8, 8)
    assert others == ["v3:4x4", 2]


# --- training runs


def of_model(model):
    return Row(model, (), model)


def test_a_progressive_run_is_algorithm_1():
    costs = MadeUpCosts()
    hours = quantities.progressive_hours(costs, of_model("efficientnetv2-m")).value
    assert [(size, parts, mixing) for _, size, _, parts, mixing in costs.asked] == [
        (380, 4, True),
        (296, 2, True),
        (212, 1, True),
        (128, 1, True),
    ]
    assert {batch for _, _, batch, *_ in costs.asked} == {128}
    # 350 epochs, 4096 images a step, 128 of them on a core; a quarter of the steps at each size.
    steps = 350 * 1_281_167 // 4096
    pixels = (128**2 + 212**2 + 296**2 + 380**2) / 4
    assert hours == pytest.approx(steps * 128 * pixels * 1e-9 / 3600, rel=1e-4)


def test_v1_is_trained_at_the_size_it_is_evaluated_at():
    costs = MadeUpCosts()
    row = TABLES["7"].row("EfficientNet-B5")
    ours = quantities.published_hours(costs, row)
    assert costs.asked == [("efficientnet-b5", 456, 128, 2, False)]
    assert ours.value == pytest.approx(TOTAL_STEPS * 128 * 456**2 * 1e-9 / 3600)


def test_what_is_refused_is_tried_in_more_parts():
    costs = MadeUpCosts()
    costs.train_step = lambda model, *, parts, **_: (
        Cost(HOW, 128, 1.0) if parts == 32 else Cost(HOW, 128)
    )
    hours = quantities.fixed_hours(costs, of_model("efficientnetv2-s")).value
    assert hours == pytest.approx(TOTAL_STEPS / 3600)
    costs.train_step = lambda model, **_: Cost(HOW, 128)
    refused = quantities.fixed_hours(costs, of_model("efficientnetv2-s"))
    assert refused == not_run("does not fit at 300 px")


def test_a_run_that_cannot_be_told_asks_no_more():
    costs = MadeUpCosts(fits=lambda model, image_size: image_size < 200)
    hours = quantities.progressive_hours(costs, of_model("efficientnetv2-s"))
    assert {size for _, size, *_ in costs.asked} == {300}
    assert hours == not_run("does not fit at 300 px")
    assert quantities.saving(costs, of_model("efficientnetv2-s")) == hours


def test_smaller_batches_are_so_many_more():
    costs = MadeUpCosts()
    costs.train_step = lambda model, **_: Cost(HOW, 16, 1.0, low=0.5, high=2.0)
    found = quantities.step_cost(costs, "efficientnetv2-s", 300)
    assert (found.seconds, found.low, found.high) == (8.0, 4.0, 16.0)


def test_what_progressive_training_saves():
    row = TABLES["12"].row("EfficientNet-B4")
    ours = quantities.saving(MadeUpCosts(), row)
    pixels = (128**2 + 212**2 + 296**2 + 380**2) / 4
    assert ours.value == pytest.approx(100 * (1 - pixels / 380**2), rel=1e-3)


def test_hours_of_which_the_runs_are_not_known_are_not_run():
    ours = quantities.published_hours(MadeUpCosts(), TABLES["7"].row("EfficientNetV2-S (21k)"))
    assert ours.how == NOT_RUN


# --- what is said


def test_markdown_says_how_each_figure_was_obtained():
    costs = MadeUpCosts(fits=lambda model, image_size: image_size < 512)
    text = as_markdown(PLANS["2"], table("2", costs))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["512 px", "out of memory", "1", "out of memory", "–", HOW] in lines
    assert ["380 px", "93", "1", "6925", "74.465", f"{HOW} [1]"] in lines
    assert "What fits is as published in 2 of 2 rows." in text
    assert "- [1] made up" in text
    assert "## Table 2. EfficientNet-B6" in text


def test_markdown_has_what_is_relative_to_the_first_row_and_the_rank_correlation():
    text = as_markdown(
        PLANS["7"], table("7", MadeUpCosts(), models=["efficientnet-b3", "efficientnet-b7"])
    )
    assert "published, relative" in text
    assert "Spearman" not in text  # of two rows
    models = ["efficientnetv2-s", "efficientnet-b3", "efficientnet-b7"]
    found = section(table("7", MadeUpCosts(), models=models), "training on 32")
    assert found.rank_correlation == 1.0


def test_json_holds_what_markdown_says():
    found = json.loads(json.dumps(as_json(PLANS["2"], table("2", MadeUpCosts()))))
    assert found["table"] == "2"
    (rows,) = [s["rows"] for s in found["sections"] if s["title"] == "TPUv3 core, batch 32"]
    assert rows[0]["published"] == {"value": 42, "unit": "images/s", "attested": 1, "spread": None}
    assert rows[0]["ours"]["how"] == HOW and rows[0]["ratio"] == pytest.approx(1e9 / 512**2 / 42)


@pytest.mark.parametrize("name", PLANS)
def test_every_quantity_stands_in_a_column_or_has_a_unit(name):
    for planned in PLANS[name].sections:
        assert (planned.column in planned.table.columns) != bool(planned.unit)


# --- this machine


def test_the_device_here_is_timed_and_what_takes_long_is_not_run():
    local = LocalCosts(batch_size=2, row_seconds=60)
    timed = local.inference("efficientnetv2-tiny", image_size=32, batch_size=128, dtype="float32")
    assert timed.how == "measured here (CPU)"
    assert timed.detail == "float32, batch 2"
    assert 0 < timed.low <= timed.seconds <= timed.high
    hurried = LocalCosts(row_seconds=1e-9)
    long = hurried.train_step("efficientnetv2-tiny", image_size=32, batch_size=128)
    assert long.how == NOT_RUN and "--row_seconds" in long.note


def test_a_training_step_is_timed_in_parts(monkeypatch):
    asked = []

    def compile_here(step, *, batch_size):
        asked.append((step.dtype, step.bn_group_size, batch_size))
        return CompiledModel(lambda: None, 1, 1.0, 1.0, 1.0, batch_size, jax.device_count())

    monkeypatch.setattr(table_costs, "compile_here", compile_here)
    timed = LocalCosts().train_step("efficientnetv2-tiny", image_size=32, batch_size=8, parts=4)
    assert timed.batch_size == 2 and timed.seconds < 1
    assert asked == [("float32", 8, 2 * jax.device_count())]
    monkeypatch.setattr(
        table_costs, "compile_here", lambda *_, **__: CompiledModel(None, 1, 1.0, 1.0, 1.0, 1, 1)
    )
    refused = LocalCosts().train_step("efficientnetv2-tiny", image_size=32, batch_size=8)
    assert refused.seconds is None and refused.how != NOT_RUN


@pytest.mark.parametrize("device", ["cuda", "tpu", "tpu:", "TPU:v3:4x4", ""])
def test_a_device_that_is_not_known_is_named(device):
    with pytest.raises(UsageError, match=r"must be local, or tpu: and a topology.*got"):
        topology_of(device)


def test_devices_are_local_or_a_topology():
    assert topology_of("local") is None
    assert topology_of("tpu:v3:4x4") == "v3:4x4"


# --- the command


def test_what_cannot_be_used_is_named():
    mistakes = [
        ({}, "--table must name one of zoo, 2, 3"),
        ({"table": "9"}, "unknown table '9': allowed are 10, 11"),
        ({"table": "2", "models": "resnet50"}, "unknown model 'resnet50'"),
        ({"table": "2", "models": "vit-b-16"}, "none of vit-b-16 is in table 2"),
        ({"table": "2", "device": "gpu:0"}, "device must be local, or tpu:"),
        ({"table": "2", "dtype": "int8"}, "unknown dtype 'int8'"),
        ({"table": "2", "inference_dtypes": "fp8"}, "unknown inference_dtypes 'fp8'"),
        ({"table": "2", "document": "/nowhere/t.md"}, "--document must be a .md file in a folder"),
    ]
    sentences = refusals("tables.tables", [values for values, _ in mistakes])
    for sentence, (_, message) in zip(sentences, mistakes, strict=True):
        assert message in sentence


def test_a_platform_that_is_not_here_is_named():
    done = run("tables", "--table=2", JAX_PLATFORMS="cuda")
    assert done.returncode == 2 and done.stdout == ""
    assert "JAX finds no device with JAX_PLATFORMS='cuda'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_document_holds_what_was_printed(tmp_path):
    document = tmp_path / "tables.md"
    done = run("tables", "--table=13,zoo", "--models=efficientnetv2-b0", f"--document={document}")
    assert done.returncode == 0, done.stderr
    written = document.read_text()
    assert "benchmark tables --table=13,zoo" in written
    assert "7.14" in written and "7.14" in done.stdout
    found = json.loads(document.with_suffix(".json").read_text())
    assert [table["table"] for table in found["tables"]] == ["zoo"]  # 13 has no such row
    assert found["environment"]["jax"]


def test_json_alone_goes_to_standard_output():
    arguments = ("--table=zoo", "--models=efficientnetv2-b0", "--json")
    done = run("tables", *arguments, without=("tensorflow", "tensorflow_datasets", "clu"))
    (found,) = json.loads(done.stdout)["tables"]
    (row,) = found["sections"][0]["rows"]
    assert row["ours"]["value"] == pytest.approx(7.139704)
