"""The loop around a step that costs nothing: when it saves, and what it makes of bad steps."""

import dataclasses
import json
import logging
import re
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effnetv2_jax.progressive import Stage
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training import loop as loop_module
from effnetv2_jax.training import mesh as placement
from effnetv2_jax.training.loop import Cadence, Loop
from effnetv2_jax.training.observing.history import JsonLinesWriter, rewind
from effnetv2_jax.training.observing.monitor import Monitor
from effnetv2_jax.training.observing.progress import LogProgress
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


class Step:
    """Its loss is its number; an example is right in every step."""

    made = 0

    def __init__(self, bad):
        self._bad = bad

    def lower_update(self, state):
        return self

    def lower_gradients(self, state, batch, scalars):
        return self

    def compile(self): ...

    def __call__(self, state, batch, scalars):
        Step.made += 1
        step = int(state.step) + 1
        good = step not in self._bad
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


def live(workdir, stages, bad=(), save_steps=100, save_seconds=1e9):
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
    watch = Watch(1000, lambda: None)
    step = Step(bad)
    batch = {"mask": np.ones(EXAMPLES, np.float32)}
    shapes = placement.abstract(placement.shard_batch(batch, mesh))
    loop = Loop(
        step,
        mesh=mesh,
        preparation=Preparation(
            step,
            mesh=mesh,
            batches=lambda stage, first: (batch for _ in range(first, stage.end_step)),
            batch_shapes=lambda stage: shapes,
            state=placement.abstract(state),
            first_step=int(state.step),
        ),
        evaluate=lambda state, agreement: {"top1": 0.5, "top5": 1.0, "loss": 1.0, "count": 1.0},
        learning_rate=lambda step: 0.1,
        checkpoints=checkpoints,
        bad_steps=BadSteps(LIMIT, record.get("bad_in_a_row", 0)),
        monitor=Monitor(JsonLinesWriter(workdir), LogProgress(), Status(None, stages), watch),
        cadence=Cadence(LOG_STEPS, save_steps, save_seconds),
        stop=Never(),
        record=record,
    )
    try:
        state = loop.run(state, stages)
        end = (int(state.step), float(state.params["w"]))
    except UsageError as error:
        end = str(error)
    finally:
        watch.stop()
        checkpoints.close()
    return begin, end


def test_the_log_has_the_first_step_and_the_stall_at_a_border(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        live(tmp_path, stages(2, 4))
    pattern = "stage . of 2|first step after(?: a stall of)?|end of stage ."
    assert re.findall(pattern, caplog.text) == [
        *("stage 1 of 2", "first step after", "end of stage 1"),
        *("stage 2 of 2", "first step after a stall of", "end of stage 2"),
    ]


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
    """By a clock of a second a step, seen two steps late; the last three stay, and the best."""
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
