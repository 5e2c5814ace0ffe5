"""Stages are made ready in the background: once, in the order of need, from where a run goes on."""

import threading
import time

import jax
import numpy as np
import pytest

from effnetv2_jax.progressive import Stage
from effnetv2_jax.training import mesh as placement
from effnetv2_jax.training.preparation import Preparation, stage_scalars

BATCH = {"mask": np.ones(4, np.float32)}
STAGES = tuple(Stage(i, 4 * i, 4 * i + 4, 16, 5.0, 0.0, 0.0, 0.1, 4) for i in range(2))


class Step:
    """Notes what is traced and compiled, and how many traces there were at once at most."""

    def __init__(self):
        self.done = []
        self.most = 0
        self._tracing = 0
        self._lock = threading.Lock()

    def _lower(self, name):
        with self._lock:
            self._tracing += 1
            self.most = max(self.most, self._tracing)
        time.sleep(0.02)
        with self._lock:
            self._tracing -= 1
            self.done.append(name)
        step = self

        class Lowered:
            def compile(self):
                step.done.append(f"{name} compiled")

        return Lowered()

    def lower_gradients(self, state, batch, scalars):
        return self._lower(f"gradients {scalars['dropout_rate']:.1f}")

    def lower_update(self, state):
        return self._lower("update")


@pytest.fixture
def asked():
    """Of the pipeline: stages and their first steps."""
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


def test_what_takes_python_is_done_one_after_the_other_in_the_order_of_need(make, asked):
    class AskedFirst(Step):
        def lower_update(self, state):
            # So that the first batch is made while the update is traced.
            assert asked == [(0, 0)]
            return super().lower_update(state)

    step = AskedFirst()
    preparation = make(step)
    ready = preparation.prepared(STAGES[0])
    traced = preparation.in_turn(lambda: [name for name in step.done if "compiled" not in name])
    assert traced.result() == ["gradients 0.1", "update"]
    ready.result()


def test_programs_are_traced_one_at_a_time_in_the_order_of_need(make):
    step = Step()
    preparation = make(step)
    futures = [preparation.prepared(stage) for stage in STAGES]
    for future in futures:
        future.result()
    assert step.most == 1
    traced = [name for name in step.done if "compiled" not in name]
    # The update is for all stages.
    assert traced == ["gradients 0.1", "update", "gradients 0.1"]
    assert sum("compiled" in name for name in step.done) == 3


def test_a_stage_is_prepared_once(make, asked):
    preparation = make(Step())
    first = preparation.prepared(STAGES[0])
    assert preparation.prepared(STAGES[0]) is first
    feed = first.result()
    assert asked == [(0, 0)]
    batches = [feed.next() for _ in range(5)]
    assert batches[4] is None
    assert all(batch["mask"].tolist() == [1, 1, 1, 1] for batch in batches[:4])


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


def test_scalars_are_those_of_the_stage():
    assert stage_scalars(STAGES[0]) == {
        "dropout_rate": np.float32(0.1),
        "mixup_alpha": 0,
        "cutmix_alpha": 0,
    }
