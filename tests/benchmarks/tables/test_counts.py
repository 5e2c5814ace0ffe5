"""Our counts of parameters and multiply-adds beside the paper's."""

import dataclasses

from effnetv2_jax.benchmarks.tables.comparison import compare
from effnetv2_jax.benchmarks.tables.costs import TpuCosts
from effnetv2_jax.benchmarks.tables.plans import FOOTNOTES, PLANS
from effnetv2_jax.benchmarks.tables.printing import as_markdown


def counts(name, **options):
    """A table's plan and sections, of which only those that are counted."""
    plan = PLANS[name]
    counted = [section for section in plan.sections if section.tolerance is not None]
    plan = dataclasses.replace(plan, sections=counted)
    return plan, compare(plan, [TpuCosts("v3:4x4", compile_new=False)], **options)


def test_every_count_is_the_papers_or_says_why_not():
    """Within 1 % (parameters) and 3 % (multiply-adds), or equal but for rounding."""
    needed = set()
    # All printed figures of the zoo are in other tests.
    for name in [name for name in PLANS if name != "zoo"]:
        for found in counts(name)[1]:
            for row in [row for row in found.rows if row.numbers is not None]:
                if not row.agrees(found.tolerance):
                    key = (row.model, found.title, row.published.value)
                    assert key in FOOTNOTES, (name, row)
                    assert FOOTNOTES[key] in row.ours.notes
                    needed.add(key)
    assert needed == set(FOOTNOTES)


def test_markdown_marks_a_count_that_differs():
    text = as_markdown(*counts("11", models=["efficientnetv2-b0", "efficientnet-b4"]))
    assert "0.965, differs" in text and "1.018, but for rounding" in text
