"""The loop around a step that costs nothing: when it saves, and what it makes of bad steps."""

import dataclasses
import json
import logging
import re
import time
import types
from collections.abc import Collection
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effnetv2_jax.progressive import Stage
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training import loop as loop_module
from effnetv2_jax.training import mesh as placement
from effnetv2_jax.training.evaluation import Evaluation
from effnetv2_jax.training.loop import Loop
from effnetv2_jax.training.observing.history import JsonLinesWriter, rewind
from effnetv2_jax.training.observing.monitor import Monitor
from effnetv2_jax.training.observing.progress import Progress
from effnetv2_jax.training.observing.report import read_scores
from effnetv2_jax.training.observing.status import Status
from effnetv2_jax.training.preparation import Preparation
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.survival.bad_steps import BadSteps
from effnetv2_jax.training.survival.checkpoint import Checkpoints
from effnetv2_jax.training.survival.stalls import Watch

LIMIT = 3
LOG_STEPS = 4
EXAMPLES = 4


def stages(*ends):
    first_steps = (0, *ends)
    return tuple(
        Stage(i, first_steps[i], end, 16, 5.0, 0.0, 0.0, 0.1, EXAMPLES)
        for i, end in enumerate(ends)
    )


@dataclasses.dataclass
class Step:
    """A step whose loss is its number and in which one example is right."""

    bad: Collection[int]
    gradients: Any = None
    update: Any = None

    made: ClassVar[int] = 0

    def lower_update(self, state):
        return self

    def lower_gradients(self, state, batch, scalars):
        return self

    def compile(self): ...

    def __call__(self, state, batch, scalars):
        Step.made += 1
        step = int(state.step) + 1
        good = step not in self.bad
        sums = {
            "loss": jnp.float32(EXAMPLES * step if good else np.nan),
            "correct": jnp.float32(1),
            "count": jnp.float32(EXAMPLES),
            "finite": jnp.float32(good),
        }
        weights = state.params["w"] + good
        state = dataclasses.replace(state, step=jnp.int32(step), params={"w": weights})
        return state, sums


class Never:
    def __call__(self):
        return False

    def worth_saving(self): ...


EVAL = Evaluation("eval", "digits", "test", 16, EXAMPLES)


def evaluate(evaluation, state, agreement, moves):
    return {"top1": 0.5, "top5": 1.0, "loss": float(state.params["w"]), "count": 1.0}


def live(
    workdir,
    stages,
    bad=(),
    save_steps=100,
    save_seconds=1e9,
    *,
    evaluations=(EVAL,),
    evaluate=evaluate,
):
    """Starts the run or goes on with it; returns the state that it begins with, and its end."""
    mesh = placement.make_mesh(jax.devices()[:1])
    checkpoints = Checkpoints(workdir)
    state = TrainState(np.int32(0), {"w": np.zeros((), np.float32)}, {}, (), {}, {})
    record = {}
    if checkpoints.latest_step() is None:
        state = placement.shard_state(state, mesh)
    else:
        record = checkpoints.record()
        state = checkpoints.restore(placement.abstract(placement.shard_state(state, mesh)), mesh)
    begin = (int(state.step), float(state.params["w"]))
    rewind(workdir, int(state.step))
    step = Step(bad)
    batch = {"mask": np.ones(EXAMPLES, np.float32)}
    shapes = placement.abstract(placement.shard_batch(batch, mesh))
    metrics = workdir / "metrics.jsonl"
    loop = Loop(
        stages=stages,
        preparation=Preparation(
            step,
            mesh=mesh,
            batches=lambda stage, first: (batch for _ in range(first, stage.end_step)),
            batch_shapes=lambda stage: shapes,
            state=placement.abstract(state),
            first_step=int(state.step),
        ),
        evaluations=evaluations,
        evaluate=evaluate,
        evaluated=[
            evaluation.name
            for evaluation in evaluations
            if int(state.step) in read_scores(metrics, evaluation.name)
        ],
        learning_rate=lambda step: 0.1,
        checkpoints=checkpoints,
        bad_steps=BadSteps(LIMIT, record.get("bad_in_a_row", 0)),
        monitor=Monitor(JsonLinesWriter(workdir), Progress(), Status(None, stages), Watch(1000)),
        log_steps=LOG_STEPS,
        save_steps=save_steps,
        save_seconds=save_seconds,
        stop=Never(),
        record=record,
    )
    try:
        state = loop.run(state)
        end = (int(state.step), float(state.params["w"]))
    except UsageError as error:
        end = str(error)
    return begin, end


def test_the_log_has_the_first_step_and_the_stall_at_a_border(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        live(tmp_path, stages(2, 4))
    pattern = "stage . of 2|first step after(?: a stall of)?|end of stage ."
    assert re.findall(pattern, caplog.text) == [
        *("stage 1 of 2", "first step after", "end of stage 1"),
        *("stage 2 of 2", "first step after a stall of", "end of stage 2"),
    ]


def test_the_next_stage_gets_ready_behind_the_first_step(tmp_path, monkeypatch):
    """Before it, tracing would keep the devices waiting at the border."""
    monkeypatch.setattr(Step, "made", 0)
    asked = []
    prepared = Preparation.prepared

    def noted(self, stage):
        asked.append((stage.index, Step.made))
        return prepared(self, stage)

    monkeypatch.setattr(Preparation, "prepared", noted)
    live(tmp_path, stages(2, 4))
    assert asked == [(0, 0), (1, 1), (1, 2)]


def losses(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row.get("train/loss") for row in rows if "train/learning_rate" in row}


@pytest.mark.parametrize(
    ("save_steps", "save_seconds", "steps"),
    [(100, 1e9, [8, 16]), (5, 1e9, [8, 10, 15, 16]), (100, 3, [8, 11, 15, 16])],
    ids=["stages", "steps", "seconds"],
)
def test_a_run_is_saved_by_steps_by_the_clock_and_at_the_end_of_stages(
    tmp_path, monkeypatch, save_steps, save_seconds, steps
):
    """The clock runs a second per step, seen two steps late; the last three and the best stay."""
    monkeypatch.setattr(Step, "made", 0)
    clock = types.SimpleNamespace(monotonic=lambda: Step.made, perf_counter=time.perf_counter)
    monkeypatch.setattr(loop_module, "time", clock)
    live(tmp_path, stages(8, 16), (), save_steps, save_seconds)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == steps


@pytest.mark.parametrize("first_bad", range(1, 9))
@pytest.mark.parametrize("save_steps", [3, 100])
def test_after_giving_up_the_log_is_that_of_a_run_without_bad_steps(
    tmp_path, first_bad, save_steps
):
    """Wherever the row lies between two lines of the log, which are means of four steps."""
    stage = stages(16)
    bad = range(first_bad, 100)
    _, end = live(tmp_path, stage, bad, save_steps)
    assert f"steps {first_bad} to " in end
    assert "had a loss or a gradient that is not finite" in end
    assert f"goes on from step {first_bad - 1}," in end
    begin, end = live(tmp_path, stage, (), save_steps)
    assert begin == (first_bad - 1, first_bad - 1)
    assert end == (16, 16)
    assert losses(tmp_path) == {4: 2.5, 8: 6.5, 12: 10.5, 16: 14.5}


def test_a_row_across_the_end_of_a_stage_goes_on_where_it_was_saved(tmp_path):
    both = stages(8, 16)
    _, end = live(tmp_path, both, range(7, 100))
    assert "steps 7 to " in end
    assert "goes on from step 8," in end
    # The row is remembered: one more is too many.
    begin, end = live(tmp_path, both, range(9, 100))
    assert begin == (8, 6)
    assert "steps 7 to " in end
    begin, end = live(tmp_path, both)
    assert (begin, end) == ((8, 6), (16, 14))
    # Those that were left out are not in the mean.
    assert losses(tmp_path) == {4: 2.5, 8: 5.5, 12: 10.5, 16: 14.5}


def test_a_stage_of_bad_steps_alone_has_a_line_without_a_loss(tmp_path):
    _, end = live(tmp_path, stages(2, 8), (1, 2))
    assert end == (8, 6)
    assert losses(tmp_path) == {2: None, 4: 3.5, 8: 6.5}


MANY = (
    EVAL,
    dataclasses.replace(EVAL, name="often", every_steps=3),
    dataclasses.replace(EVAL, name="raw", weights="raw"),
)


def evaluated(workdir):
    """Returns (name, step, loss) of every evaluation, in the order of the lines."""
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [
        (key.partition("/")[0], row["step"], row[key])
        for row in map(json.loads, lines)
        for key in row
        if key.endswith("/loss") and key != "train/loss"
    ]


EXPECTED = [
    *[("often", 3, 3), ("eval", 5, 5), ("raw", 5, 5), ("often", 6, 6), ("often", 9, 9)],
    *[("eval", 10, 10), ("often", 10, 10), ("raw", 10, 10)],
]


def test_evaluations_follow_every_n_steps_or_the_ends_of_stages(tmp_path):
    live(tmp_path, stages(5, 10), evaluations=MANY)
    assert evaluated(tmp_path) == EXPECTED


@pytest.mark.parametrize("broken", range(1, len(EXPECTED) + 1))
def test_a_run_that_ends_at_an_evaluation_goes_on_with_it(tmp_path, broken):
    """A failure at the n-th evaluation, with a checkpoint of the step before it or not."""
    made = 0

    def breaking(evaluation, state, agreement, moves):
        nonlocal made
        made += 1
        if made == broken:
            raise UsageError("the disk is broken")
        return evaluate(evaluation, state, agreement, moves)

    live(tmp_path, stages(5, 10), (), 2, evaluations=MANY, evaluate=breaking)
    assert evaluated(tmp_path) == EXPECTED[: broken - 1]
    live(tmp_path, stages(5, 10), (), 2, evaluations=MANY)
    assert evaluated(tmp_path) == EXPECTED


def test_the_first_evaluation_scores_the_checkpoints(tmp_path):
    """The evaluations that are worse for every step keep the first checkpoint as the best."""

    def worse(evaluation, state, agreement, moves):
        accuracy = 1 - int(state.step) / 100 if evaluation.name == "eval" else int(state.step) / 100
        return evaluate(evaluation, state, agreement, moves) | {"top1": accuracy}

    live(tmp_path, stages(2, 4, 6, 8, 10), evaluations=MANY, evaluate=worse)
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert steps == [2, 6, 8, 10]
