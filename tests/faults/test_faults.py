"""Tests a few faults on the real program; ``make faults`` tries many."""

import pytest

from tests.faults import harness, scenarios

# The other faults are tested by make test-slow. Smaller tests promise the same: training/survival
# and training/observing test what a full disk costs, and others what a workdir refuses.
QUICK = ("Newest checkpoint: truncated", "Numbers go wrong")
_KINDS = {kind.name: kind for kind in harness.KINDS}
THREE = (
    harness.Kill(_KINDS["SIGKILL while a checkpoint is written"], 9, 0.02),
    harness.Kill(_KINDS["SIGKILL during an evaluation"], 14, 0.05),
    harness.Kill(_KINDS["SIGTERM at a random step"], 40, 0.1),
)


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(THREE, id="three"),
        pytest.param(*harness.draw(5, seed=6), id="five", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_is_the_run_that_was_not(program, reference, tmp_path, kills):
    outcomes = list(harness.kill_in_a_row(program, tmp_path, kills, reference))
    assert [outcome.name for outcome in outcomes] == [kill.kind.name for kill in kills]
    assert [outcome.wrong for outcome in outcomes] == [[]] * len(kills)


def marks(name):
    if name not in QUICK:
        yield pytest.mark.slow


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=list(marks(name))) for name in scenarios.SCENARIOS]
)
def test_after_a_fault_a_run_is_what_it_would_have_been(name, program, reference, tmp_path):
    scenarios.SCENARIOS[name](program, reference, tmp_path)


def test_there_is_a_checkpoint_every_five_steps_and_at_the_end_of_every_stage(reference):
    every = range(5, harness.STEPS, 5)
    assert harness.steps(reference) == sorted({*every, *harness.BORDERS})


def test_what_the_harness_compares_differs_where_runs_differ(reference, tmp_path):
    """Otherwise nothing here could fail."""
    same, other = tmp_path / "same", tmp_path / "other"
    for workdir in (same, other):
        harness.copy_until(reference, workdir, harness.STEPS)
    assert harness.differences(same, reference) == []
    lines = (other / "metrics.jsonl").read_text()
    (other / "metrics.jsonl").write_text(lines.replace('"train/loss": 2.', '"train/loss": 3.', 1))
    (found,) = harness.differences(other, reference)
    assert "'train/loss': 3." in found and "instead of" in found
    harness.copy_until(reference, tmp_path / "short", 55)
    (found,) = harness.differences(tmp_path / "short", reference)
    assert found.startswith("step 55 instead of 59")


def test_kills_are_drawn_from_the_seed_and_of_all_kinds():
    assert harness.draw(50, seed=3) == harness.draw(50, seed=3) != harness.draw(50, seed=4)
    kills = [kill for row in harness.draw(50, seed=0) for kill in row]
    assert len(kills) == 50
    counts = [sum(kill.kind == kind for kill in kills) for kind in harness.KINDS]
    assert min(counts) >= 5
    assert len({kill.step for kill in kills}) > 20
