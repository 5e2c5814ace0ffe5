"""Numbers that are not finite: the step that leaves the state as it is, and who counts it."""

import dataclasses
import functools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from effnetv2_jax.training import mesh as placement
from effnetv2_jax.training.state import TrainState, create_state
from effnetv2_jax.training.step import make_train_step
from effnetv2_jax.training.survival.bad_steps import BadSteps
from tests.training.test_step import BATCH, CLASSES, FAMILY, SCALARS, batch_of

LAYOUTS = {
    "one device": {"devices": 1},
    "eight devices": {"devices": 8},
    "eight devices, the state split": {"devices": 8, "fsdp": 2},
}
# Numbers of a state, and what one of them is to be for a step that goes wrong: in the loss, in the
# gradient of one weight, which only some devices have where the state is split, or in statistics.
SPOILED = {
    "loss": ("params", "bias", 3, np.nan),
    "infinite loss": ("params", "bias", 3, np.inf),
    "gradient": ("params", "weight", (100, 5), 0.0),
    "statistics": ("batch_stats", "mean", 1, 3e38),
}


def apply(params, batch_stats, images, **keywords):
    """A model of one layer, in which a weight has no derivative at 0 and no effect."""
    del keywords
    means = images.mean((1, 2))
    no_effect = 0.0 * jnp.sqrt(params["weight"][100, 5])
    logits = means @ params["weight"][:3, :CLASSES] + params["bias"] + no_effect
    return logits, {"mean": 2 * batch_stats["mean"] + means.mean(0)}


@functools.cache
def programs(devices, fsdp=1):
    """(training step, mesh, optimizer); compiled once."""
    mesh = placement.make_mesh(jax.devices()[:devices], fsdp=fsdp)
    optimizer = optax.adam(0.01)
    train_step = make_train_step(
        apply, optimizer, mesh=mesh, num_classes=CLASSES, ema_decay=0.5, **FAMILY
    )
    return train_step, mesh, optimizer


def setup(**layout):
    """(state, training step, mesh); large enough that the weight is split over fsdp."""
    train_step, mesh, optimizer = programs(**layout)
    params = {"weight": jnp.full((128, 128), 0.5), "bias": jnp.zeros(CLASSES)}
    state = create_state(params, {"mean": jnp.zeros(3)}, optimizer)
    return placement.shard_state(state, mesh), train_step, mesh


def with_number(state, part, name, index, value):
    """The state with one number changed."""
    tree = getattr(state, part)
    changed = np.array(tree[name])
    changed[index] = value
    array = jax.device_put(changed, tree[name].sharding)
    return dataclasses.replace(state, **{part: tree | {name: array}})


def assert_same_but_for_step(state: TrainState, before: TrainState):
    changed = dataclasses.replace(before, step=state.step)
    jax.tree.map(np.testing.assert_array_equal, state, changed)


@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_that_are_not_finite_leave_the_state_but_for_its_step(layout, spoiled):
    state, train_step, mesh = setup(**LAYOUTS[layout])
    state = with_number(state, *SPOILED[spoiled])
    before = jax.device_get(state)
    state, sums = train_step(state, placement.shard_batch(batch_of(), mesh), SCALARS)
    assert float(sums["finite"]) == 0
    assert float(sums["count"]) == BATCH
    assert np.isfinite(float(sums["loss"])) == ("loss" not in spoiled)
    assert int(state.step) == 1
    assert_same_but_for_step(state, before)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_good_step_says_so_and_changes_everything(layout):
    state, train_step, mesh = setup(**LAYOUTS[layout])
    before = jax.device_get(state)
    state, sums = train_step(state, placement.shard_batch(batch_of(), mesh), SCALARS)
    assert float(sums["finite"]) == 1
    for name in ("params", "batch_stats", "opt_state", "ema_params", "ema_batch_stats"):
        for new, old in zip(
            jax.tree.leaves(getattr(state, name)),
            jax.tree.leaves(getattr(before, name)),
            strict=True,
        ):
            assert (np.asarray(new) != old).any(), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_after_a_bad_step_a_good_one_is_what_it_would_have_been(layout):
    """A step that was left out leaves no trace in the optimiser or the averages."""
    state, train_step, mesh = setup(**LAYOUTS[layout])
    expected, *_ = setup(**LAYOUTS[layout])
    empty = batch_of(0, count=0)  # no examples: 0 / 0
    state, sums = train_step(state, placement.shard_batch(empty, mesh), SCALARS)
    assert float(sums["finite"]) == 0
    good = placement.shard_batch(batch_of(1), mesh)
    state, sums = train_step(state, good, SCALARS)
    assert float(sums["finite"]) == 1
    assert int(state.step) == 2
    at_one = placement.shard_state(np.int32(1), mesh)
    expected, _ = train_step(dataclasses.replace(expected, step=at_one), good, SCALARS)
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def sums(finite, loss=1.0):
    return {"finite": np.float32(finite), "loss": np.float32(loss * 4), "count": np.float32(4)}


@pytest.mark.parametrize("finite", [True, False])
def test_every_platform_updates_alike(as_if_on, finite):
    """By a branch on CPU, by a choice for every number elsewhere."""
    state, _, mesh = setup(devices=1)
    optimizer = programs(devices=1)[2]
    number = 1.0 if finite else np.nan
    gradients = jax.tree.map(
        lambda x: number * jnp.cos(jnp.arange(x.size)).reshape(x.shape), state.params
    )

    def updated(platform):
        as_if_on(platform)
        train_step = make_train_step(
            apply, optimizer, mesh=mesh, num_classes=CLASSES, ema_decay=0.5, **FAMILY
        )
        copy = jax.tree.map(jnp.copy, state)
        return train_step.update(copy, gradients, {"mean": number * jnp.ones(3)}, float(finite))

    on_cpu, on_tpu = updated("cpu"), updated("tpu")
    assert on_cpu.step == on_tpu.step == state.step + 1
    if finite:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), on_cpu, on_tpu)
        assert not (on_cpu.params["bias"] == state.params["bias"]).any()
        np.testing.assert_array_equal(on_cpu.batch_stats["mean"], 1.0)
    else:
        assert_same_but_for_step(on_cpu, state)
        assert_same_but_for_step(on_tpu, state)


def test_steps_in_a_row_are_counted_and_a_good_one_ends_the_row():
    bad_steps = BadSteps(3)
    for step, finite in enumerate([1, 0, 0, 1, 0, 0], start=1):
        bad_steps.see(step, sums(finite))
        assert not bad_steps.too_many
    assert (bad_steps.in_a_row, bad_steps.total) == (2, 4)
    bad_steps.see(7, sums(0))
    assert bad_steps.too_many
    assert (bad_steps.in_a_row, bad_steps.total) == (3, 5)


def test_a_row_goes_on_where_a_run_is_resumed():
    bad_steps = BadSteps(3, 2)
    assert not bad_steps.too_many
    bad_steps.see(8, sums(0))
    assert bad_steps.too_many
    assert bad_steps.total == 1


def test_a_bad_step_is_written_down_with_its_examples(tmp_path, caplog):
    path = tmp_path / "bad_steps.jsonl"
    bad_steps = BadSteps(3, file=path, examples=lambda step: [[10 * step, f"{step}.jpg"]])
    bad_steps.see(4, sums(1))
    assert not path.exists()
    with caplog.at_level(logging.WARNING, logger="absl"):
        bad_steps.see(5, sums(0, np.nan))
        bad_steps.see(6, sums(0, 2.5))
        bad_steps.see(7, sums(0, -np.inf))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row.pop("time")
    assert rows == [
        {"step": 5, "what": "loss", "loss": "nan", "examples": [[50, "5.jpg"]]},
        {"step": 6, "what": "gradient", "loss": "2.5", "examples": [[60, "6.jpg"]]},
        {"step": 7, "what": "loss", "loss": "-inf", "examples": [[70, "7.jpg"]]},
    ]
    assert "step 5 was left out: its loss is not finite (1 in a row, 3 end the run)" in caplog.text
    assert "step 6 was left out: its gradient is not finite (2 in a row" in caplog.text


def test_who_writes_nothing_down_asks_for_no_examples():
    """With several processes, that is all but the first."""
    bad_steps = BadSteps(3, examples=lambda step: pytest.fail("asked"))
    bad_steps.see(5, sums(0))
    assert bad_steps.total == 1
