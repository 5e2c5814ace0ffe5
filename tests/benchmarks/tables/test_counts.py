"""Our counts of parameters and multiply-adds beside the paper's."""

import dataclasses
import json
import pathlib
from types import SimpleNamespace

import pytest

from effnetv2_jax.benchmarks.tables import quantities
from effnetv2_jax.benchmarks.tables.comparison import compare
from effnetv2_jax.benchmarks.tables.costs import TpuCosts
from effnetv2_jax.benchmarks.tables.plans import FOOTNOTES, PLANS
from effnetv2_jax.benchmarks.tables.printing import as_markdown
from effnetv2_jax.models import list_models, model_info

DOCUMENT = pathlib.Path(__file__).parents[3] / "docs" / "reproduction.json"


def written_counts():
    """Our counts in docs/reproduction.json, by model. Counting one again takes a second."""
    zoo, *_ = json.loads(DOCUMENT.read_text())["tables"]
    parameters, flops = ({r["model"]: r["ours"] for r in s["rows"]} for s in zoo["sections"])
    return {
        name: SimpleNamespace(
            parameters=round(parameters[name]["value"] * 1e6),
            multiply_adds=round(flops[name]["value"] * 1e9),
            image_size=int(flops[name]["detail"].removesuffix(" px")),
        )
        for name in parameters
    }


def counts(name, **options):
    """A table's plan and sections, of which only those that are counted."""
    plan = PLANS[name]
    counted = [section for section in plan.sections if section.tolerance is not None]
    plan = dataclasses.replace(plan, sections=counted)
    return plan, compare(plan, [TpuCosts("v3:4x4", compile_new=False)], **options)


@pytest.mark.parametrize(
    "names",
    [("efficientnetv2-s", "efficientnet-b4"), pytest.param(list_models(), marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_what_is_written_is_what_is_counted(names):
    written = written_counts()
    assert set(written) == set(list_models())
    for name in names:
        info = model_info(name)
        found = SimpleNamespace(
            parameters=info.parameters,
            multiply_adds=info.multiply_adds,
            image_size=info.image_size,
        )
        assert found == written[name], name


def test_every_count_is_the_papers_or_says_why_not(monkeypatch):
    """Within 1 % (parameters) and 3 % (multiply-adds), or equal but for rounding."""
    monkeypatch.setattr(quantities, "_model_info", written_counts().__getitem__)
    needed = set()
    for name in PLANS:
        for found in counts(name)[1]:
            for row in [row for row in found.rows if row.numbers is not None]:
                if not row.agrees(found.tolerance):
                    key = (row.model, found.title, row.published.value)
                    assert key in FOOTNOTES, (name, row)
                    assert FOOTNOTES[key] in row.ours.notes
                    needed.add(key)
    assert needed == set(FOOTNOTES)


def test_markdown_marks_a_count_that_differs(monkeypatch):
    monkeypatch.setattr(quantities, "_model_info", written_counts().__getitem__)
    text = as_markdown(*counts("11", models=["efficientnetv2-b0", "efficientnet-b4"]))
    assert "0.965, differs" in text and "1.018, but for rounding" in text
