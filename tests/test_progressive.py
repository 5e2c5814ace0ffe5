"""The schedules against the paper's Table 6 and the official code's sizes."""

import itertools

import pytest

from effnetv2_jax.progressive import SCHEDULES, examples_before, make_stages, stage_at
from effnetv2_jax.runtime.errors import UsageError

# Table 6: min → max of each model.
TABLE_6 = {
    "s": {"image_size": (128, 300), "magnitude": (5, 15), "mixup": (0, 0), "dropout": (0.1, 0.3)},
    "m": {"image_size": (128, 380), "magnitude": (5, 20), "mixup": (0, 0.2), "dropout": (0.1, 0.4)},
    "l": {"image_size": (128, 380), "magnitude": (5, 25), "mixup": (0, 0.5), "dropout": (0.1, 0.5)},
}


def stages_of(schedule="paper", model="s", num_stages=4, total_steps=1000, **keywords):
    row = TABLE_6[model]
    arguments = {
        "total_steps": total_steps,
        "num_stages": num_stages,
        "batch_size": 4096,
        "image_size": row["image_size"],
        "randaugment_magnitude": row["magnitude"],
        "mixup_alpha": row["mixup"],
        "dropout_rate": row["dropout"],
    }
    return make_stages(schedule, **(arguments | keywords))


def column(stages, name):
    return [getattr(stage, name) for stage in stages]


@pytest.mark.parametrize(
    ("model", "sizes", "magnitudes", "alphas", "rates"),
    [
        ("s", [128, 185, 243, 300], [5, 8.3333, 11.6667, 15], [0, 0, 0, 0],
         [0.1, 0.1667, 0.2333, 0.3]),
        ("m", [128, 212, 296, 380], [5, 10, 15, 20], [0, 0.0667, 0.1333, 0.2],
         [0.1, 0.2, 0.3, 0.4]),
        ("l", [128, 212, 296, 380], [5, 11.6667, 18.3333, 25], [0, 0.1667, 0.3333, 0.5],
         [0.1, 0.2333, 0.3667, 0.5]),
    ],
)  # fmt: skip
def test_the_papers_stages(model, sizes, magnitudes, alphas, rates):
    stages = stages_of(model=model)
    assert column(stages, "image_size") == sizes
    assert column(stages, "randaugment_magnitude") == pytest.approx(magnitudes, abs=1e-4)
    assert column(stages, "mixup_alpha") == pytest.approx(alphas, abs=1e-4)
    assert column(stages, "dropout_rate") == pytest.approx(rates, abs=1e-4)


@pytest.mark.parametrize("model", TABLE_6)
@pytest.mark.parametrize("num_stages", [2, 3, 4, 7, 44])
def test_the_papers_first_and_last_values_are_exact(model, num_stages):
    first, *_, last = stages_of(model=model, num_stages=num_stages)
    row = TABLE_6[model]
    for stage, end in ((first, 0), (last, 1)):
        assert stage.image_size == row["image_size"][end]
        assert stage.randaugment_magnitude == row["magnitude"][end]
        assert stage.mixup_alpha == row["mixup"][end]
        assert stage.dropout_rate == row["dropout"][end]


@pytest.mark.parametrize(
    ("bounds", "sizes"),
    [((128, 300), [171, 214, 257, 300]), ((128, 384), [192, 256, 320, 384])],
)
def test_the_official_sizes(bounds, sizes):
    stages = stages_of("official", image_size=bounds)
    assert column(stages, "image_size") == sizes
    assert column(stages, "randaugment_magnitude") == pytest.approx([5, 25 / 3, 35 / 3, 15])
    assert column(stages, "dropout_rate") == [0.3] * 4  # not scheduled


def test_a_fixed_size_is_one_size_and_one_strength():
    stages = stages_of("fixed", model="m")
    assert set(column(stages, "image_size")) == {380}
    assert set(column(stages, "randaugment_magnitude")) == {20}
    assert set(column(stages, "mixup_alpha")) == {0.2}


def test_progressive_resize_changes_sizes_only():
    stages = stages_of("progressive_resize", model="l")
    assert column(stages, "image_size") == [128, 212, 296, 380]
    assert set(column(stages, "randaugment_magnitude")) == {25}
    assert set(column(stages, "dropout_rate")) == {0.5}


def test_random_resize_is_seeded_and_stays_on_its_grid():
    sizes = column(stages_of("random_resize", num_stages=44), "image_size")
    assert sizes == column(stages_of("random_resize", num_stages=44), "image_size")
    assert sizes != column(stages_of("random_resize", num_stages=44, seed=1), "image_size")
    assert set(sizes) <= {128, 160, 192, 224, 256, 288, 300}
    assert len(set(sizes)) > 4


def test_adaptive_random_resize_lets_the_strength_follow_the_size():
    for stage in stages_of("adaptive_random_resize", num_stages=44):
        share = (stage.image_size - 128) / (300 - 128)
        assert stage.randaugment_magnitude == pytest.approx(5 + 10 * share)
        assert stage.dropout_rate == pytest.approx(0.1 + 0.2 * share)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("num_stages", "total_steps"), [(1, 1), (4, 4), (4, 1003), (7, 100)])
def test_stages_cover_the_run_without_gap_in_equal_shares(schedule, num_stages, total_steps):
    stages = stages_of(schedule, num_stages=num_stages, total_steps=total_steps)
    assert len(stages) == num_stages
    assert [stage.index for stage in stages] == list(range(num_stages))
    assert stages[0].first_step == 0
    assert stages[-1].end_step == total_steps
    for before, after in itertools.pairwise(stages):
        assert before.end_step == after.first_step
    lengths = column(stages, "num_steps")
    assert max(lengths) - min(lengths) <= 1


def test_a_single_stage_has_the_last_values():
    (stage,) = stages_of(num_stages=1)
    assert (stage.image_size, stage.randaugment_magnitude, stage.dropout_rate) == (300, 15, 0.3)


def test_stage_at_every_border():
    stages = stages_of(total_steps=1003)
    for stage in stages:
        assert stage_at(stages, stage.first_step) is stage
        assert stage_at(stages, stage.end_step - 1) is stage
    assert stage_at(stages, 10_000) is stages[-1]
    with pytest.raises(UsageError, match="got -1"):
        stage_at(stages, -1)


def test_examples_before_counts_whole_batches():
    stages = stages_of(total_steps=10, num_stages=4)
    assert [examples_before(stages, step) for step in (0, 1, 5, 10)] == [0, 4096, 20480, 40960]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "papr"}, "unknown schedule 'papr': did you mean paper"),
        (
            {"image_size": (0, 300)},
            r"\(smallest, largest\) with smallest <= .* at least 1 .* got \(0, 300\)",
        ),
        ({"image_size": (300, 128)}, r"got \(300, 128\)"),
        ({"num_stages": 0}, "num_stages must be at least 1 and at most 1000, got 0"),
        ({"total_steps": 3}, r"at least num_stages \(4\), got 3"),
        ({"batch_size": 0}, "batch_size must be at least 1 and at most 1000000, got 0"),
        ({"dropout_rate": (0.1, 1.0)}, r"dropout_rate .* got \(0.1, 1.0\)"),
        ({"mixup_alpha": (-0.1, 0)}, "mixup_alpha"),
        ({"randaugment_magnitude": (float("nan"), 1.0)}, "randaugment_magnitude"),
        ({"size_step": 0}, "size_step must be at least 1, got 0"),
    ],
)
def test_bad_values_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        stages_of(**change)
