"""Stages are prepared in the background: once, and from where a run goes on."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
import pytest

from effnetv2_jax.progressive import Stage
from effnetv2_jax.training import mesh as placement
from effnetv2_jax.training.preparation import Preparation

BATCH = {"mask": np.ones(4, np.float32)}
STAGES = tuple(Stage(i, 4 * i, 4 * i + 4, 16, 5.0, 0.0, 0.0, 0.1 * (i + 1), 4) for i in range(2))


@dataclasses.dataclass(frozen=True)
class Step:
    """A step whose programs are their names; notes what is compiled."""

    gradients: Any = None
    update: Any = None
    compiled: list[str] = dataclasses.field(default_factory=list)

    def _lower(self, name):
        step = self

        class Lowered:
            def compile(self):
                step.compiled.append(name)
                return name

        return Lowered()

    def lower_gradients(self, state, batch, scalars):
        return self._lower(f"gradients {scalars['dropout_rate']:.1f}")

    def lower_update(self, state):
        return self._lower("update")


@pytest.fixture
def asked():
    """The stages and first steps that the pipeline was asked for."""
    return []


@pytest.fixture
def make(asked):
    mesh = placement.make_mesh(jax.devices()[:1])

    def make(step, first_step=0, batch=BATCH):
        def batches(stage, first_step):
            asked.append((stage.index, first_step))
            return (batch for _ in range(first_step, stage.end_step))

        return Preparation(
            step,
            mesh=mesh,
            batches=batches,
            batch_shapes=lambda stage: placement.abstract(placement.shard_batch(BATCH, mesh)),
            state=None,
            first_step=first_step,
        )

    return make


def test_a_stage_has_its_compiled_step_and_shares_the_update(make):
    step = Step()
    preparation = make(step)
    stages = [preparation.prepared(stage).result() for stage in STAGES]
    assert [stage.train_step.gradients for stage in stages] == ["gradients 0.1", "gradients 0.2"]
    assert [stage.train_step.update for stage in stages] == ["update", "update"]
    assert [stage.scalars["dropout_rate"] for stage in stages] == [np.float32(0.1), np.float32(0.2)]
    assert sorted(step.compiled) == ["gradients 0.1", "gradients 0.2", "update"]


def test_a_stage_is_prepared_once(make, asked):
    preparation = make(Step())
    first = preparation.prepared(STAGES[0])
    assert preparation.prepared(STAGES[0]) is first
    feed = first.result().feed
    assert asked == [(0, 0)]
    batches = [feed.next() for _ in range(5)]
    assert batches[4] is None
    assert all(batch["mask"].tolist() == [1, 1, 1, 1] for batch in batches[:4])


def test_a_step_is_traced_before_the_graph_of_its_input_is_made(make, asked):
    """Two threads in Python would take the time from the stage that is running."""
    before = []

    class Slow(Step):
        def lower_gradients(self, state, batch, scalars):
            time.sleep(0.1)
            before.extend(asked)
            return super().lower_gradients(state, batch, scalars)

    make(Slow()).prepared(STAGES[0]).result()
    assert (before, asked) == ([], [(0, 0)])


def test_a_run_goes_on_within_a_stage_and_at_the_beginning_of_those_after_it(make, asked):
    preparation = make(Step(), first_step=2)
    for stage in STAGES:
        preparation.prepared(stage).result()
    assert asked == [(0, 2), (1, 4)]


def test_batches_of_another_shape_than_was_compiled_for_are_a_mistake(make):
    preparation = make(Step(), batch={"mask": np.ones(5, np.float32)})
    with pytest.raises(AssertionError):
        preparation.prepared(STAGES[0]).result()


def test_what_goes_wrong_in_the_background_is_raised_where_it_is_awaited(make):
    class Broken(Step):
        def lower_update(self, state):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make(Broken()).prepared(STAGES[0]).result()
