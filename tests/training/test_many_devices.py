"""Many devices together: groups of batch norm, split states, accumulation, communication."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from effnetv2_jax.benchmarks.tpu.collectives import collectives_of
from effnetv2_jax.models import EfficientNet, abstract_model
from effnetv2_jax.models.layers import BatchNorm
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training import evaluation, step
from effnetv2_jax.training import mesh as placement
from effnetv2_jax.training.state import create_state, functional
from effnetv2_jax.training.survival.checkpoint import Checkpoints
from tests import xla_flags
from tests.training.test_step import (
    CLASSES,
    FAMILY,
    OPTIMIZER,
    RANDOM,
    SCALARS,
    SPEC,
    assert_trees_close,
    batch_of,
    run,
    setup,
)


@pytest.mark.parametrize("group_size", [1, 2, 8, None, 32])
def test_batch_norm_normalises_by_groups_of_devices(group_size):
    mesh = placement.make_mesh(jax.devices()[:8], fsdp=2)
    channels = 5
    x = np.random.default_rng(0).normal(3, 2, (16, 4, 4, channels)).astype(np.float32)

    def normalise(x):
        norm = BatchNorm(channels, axis_name=placement.AXES, group_size=group_size, momentum=0)
        return norm(x, train=True).array, norm.mean[...][None], norm.var[...][None]

    over_devices = PartitionSpec(placement.AXES)
    normalised, means, variances = jax.jit(
        jax.shard_map(
            normalise, mesh=mesh, in_specs=over_devices, out_specs=over_devices, check_vma=False
        )
    )(x)
    size = min(group_size or 8, 8)
    groups = x.reshape(8 // size, -1, channels)
    mean, var = groups.mean(1), groups.var(1)
    np.testing.assert_allclose(means, np.repeat(mean, size, axis=0), rtol=1e-5)
    np.testing.assert_allclose(variances, np.repeat(var, size, axis=0), rtol=1e-4)
    expected = (groups - mean[:, None]) / np.sqrt(var[:, None] + 1e-3)
    np.testing.assert_allclose(normalised, expected.reshape(x.shape), rtol=1e-4, atol=1e-4)


def stem(images):
    """Returns the input of the first batch norm for a batch, with the initial kernel."""
    _, state, *_ = setup()
    convolved = jax.lax.conv_general_dilated(
        images.astype(np.float32) / 128 - 1,
        state.params["stem"]["conv"]["kernel"],
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return np.asarray(convolved)


def test_a_step_keeps_the_mean_of_the_groups_statistics():
    by_groups, _ = run(1, devices=8, bn_group_size=2)
    together, _ = run(1, devices=8)
    # The stem sees the images themselves: the mean of the groups' means is the mean of all, and the
    # mean of their variances is less than the variance of all.
    mean, var = (by_groups.batch_stats["stem"]["norm"][name] for name in ("mean", "var"))
    all_mean, all_var = (together.batch_stats["stem"]["norm"][name] for name in ("mean", "var"))
    np.testing.assert_allclose(mean, all_mean, rtol=1e-4, atol=1e-7)
    assert (var < all_var).all()
    convolved = stem(batch_of(0)["image"])
    groups = convolved.reshape(4, -1, convolved.shape[-1])
    expected = SPEC.bn_momentum + (1 - SPEC.bn_momentum) * groups.var(1).mean(0)
    np.testing.assert_allclose(var, expected, rtol=1e-5)


def test_a_split_state_computes_what_a_copied_one_does(monkeypatch):
    monkeypatch.setattr(placement, "MIN_SHARDED_SIZE", 256)
    copied, losses_of_copied = run(4, devices=8)
    split, losses_of_split = run(4, devices=8, fsdp=4)
    np.testing.assert_allclose(losses_of_split, losses_of_copied, rtol=1e-5)
    assert_trees_close(split, copied, rtol=1e-4, atol=1e-5)
    # And each device holds its part of it, before and after a step.
    mesh, state, train_step, _ = setup(8, fsdp=4)
    state = placement.shard_state(jax.tree.map(jnp.copy, state), mesh)
    for _ in range(2):
        for tree in (state.params, state.ema_params, state.opt_state):
            kernels = [x for x in jax.tree.leaves(tree) if x.ndim == 4 and x.size >= 256]
            assert kernels
            assert all(x.addressable_shards[0].data.size == x.size / 4 for x in kernels)
        state, _ = train_step(state, placement.shard_batch(batch_of(), mesh), SCALARS)


def test_a_split_state_is_evaluated_as_a_copied_one(monkeypatch):
    monkeypatch.setattr(placement, "MIN_SHARDED_SIZE", 256)
    results = []
    for fsdp in (1, 4):
        mesh, state, _, apply = setup(8, fsdp=fsdp)
        state = placement.shard_state(state, mesh)
        eval_step = evaluation.make_eval_step(apply, mesh=mesh, **FAMILY)
        results.append(
            evaluation.evaluate(eval_step, state.params, state.batch_stats, [batch_of()], mesh)
        )
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_a_checkpoint_is_read_onto_another_mesh(monkeypatch, tmp_path):
    monkeypatch.setattr(placement, "MIN_SHARDED_SIZE", 256)
    _, state, *_ = setup()
    written = Checkpoints(tmp_path)
    split = placement.shard_state(state, placement.make_mesh(jax.devices()[:8], fsdp=4))
    written.save(split, {"of": "this run"})
    written.close()
    for devices, fsdp in ((8, 1), (2, 2), (1, 1)):
        mesh = placement.make_mesh(jax.devices()[:devices], fsdp=fsdp)
        read = Checkpoints(tmp_path).restore(jax.eval_shape(lambda: state), mesh)
        assert_trees_close(read, state, rtol=0)
        kernel = read.ema_params["classifier"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size / fsdp


@functools.cache
def frozen(devices, accumulation_steps):
    """Returns parameters and sums after one step with batch norm in evaluation mode."""
    mesh = placement.make_mesh(jax.devices()[:devices])
    apply, params, batch_stats = functional(
        EfficientNet(SPEC, num_classes=CLASSES, rngs=nnx.Rngs(0))
    )

    def apply_frozen(params, batch_stats, images, *, train, **keywords):
        return apply(params, batch_stats, images, train=False)

    train_step = step.make_train_step(
        apply_frozen,
        OPTIMIZER,
        mesh=mesh,
        num_classes=CLASSES,
        accumulation_steps=accumulation_steps,
        **FAMILY,
    )
    state = placement.shard_state(create_state(params, batch_stats, OPTIMIZER), mesh)
    # Masks that differ by part: what counts is the mean over the whole batch.
    batch = placement.shard_batch(batch_of(count=13), mesh)
    state, sums = train_step(state, batch, SCALARS)
    return jax.device_get((state.params, sums))


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    params, sums = frozen(4, 4)
    expected_params, expected_sums = frozen(1, 1)
    assert_trees_close(params, expected_params, rtol=1e-5, atol=1e-7)
    assert_trees_close(sums, expected_sums, rtol=1e-5)
    assert sums["count"] == 13


def test_accumulation_draws_what_the_whole_batch_does(monkeypatch):
    """Everything but the statistics is the same; each part has its own statistics."""

    def fixed(self, x):
        return self.mean[...], self.var[...]

    monkeypatch.setattr(BatchNorm, "_batch_statistics", fixed)
    # A seed of its own: programs of its own.
    whole, losses = run(2, seed=11, **RANDOM)
    parts, losses_of_parts = run(2, devices=2, accumulation_steps=4, seed=11, **RANDOM)
    np.testing.assert_allclose(losses_of_parts, losses, rtol=1e-5)
    assert_trees_close(parts.params, whole.params, rtol=1e-4, atol=1e-6)


def test_accumulation_moves_batch_norm_once_for_every_part():
    accumulated, _ = run(1, devices=4, accumulation_steps=4)
    convolved = stem(batch_of(0)["image"])
    # Of 16 images, device d has 4 d … 4 d + 3, and part p of its share is the image 4 d + p.
    parts = convolved.reshape(4, 4, -1, convolved.shape[-1]).swapaxes(0, 1)
    expected = np.zeros(convolved.shape[-1])
    for part in parts:
        expected = SPEC.bn_momentum * expected + (1 - SPEC.bn_momentum) * part.mean((0, 1))
    mean = accumulated.batch_stats["stem"]["norm"]["mean"]
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-7)


def program(devices, scalars=SCALARS, **keywords):
    """Returns the compiled program of the gradients; ``run`` shares it."""
    mesh, state, train_step, _ = setup(devices, **keywords)
    state = placement.abstract_state(state, mesh)
    batch = placement.abstract(placement.shard_batch(batch_of(), mesh))
    arguments = (state.params, state.batch_stats, state.step, batch, scalars)
    return train_step.gradients.lower(*arguments).compile()


def test_rematerialisation_computes_more_and_changes_nothing_else():
    # What memory it saves, the TPU's compiler says (docs/tpu_compile.md); XLA's on CPU saves none.
    policies = [RANDOM | {"remat": remat} for remat in ("none", "blocks", "stages")]
    plain, blocks, stages = (program(2, **policy) for policy in policies)
    # No statistics are sent twice.
    counts = [compiled.as_text().count(" all-reduce(") for compiled in (plain, blocks, stages)]
    assert counts[0] == counts[1] == counts[2] > 0
    flops = [compiled.cost_analysis()["flops"] for compiled in (plain, blocks, stages)]
    assert flops[0] * 1.02 < flops[1] <= flops[2]
    (state, losses), *others = (run(2, devices=2, **policy) for policy in policies)
    for again, losses_again in others:
        np.testing.assert_allclose(losses_again, losses, rtol=1e-6)
        assert_trees_close(again, state, rtol=1e-5, atol=1e-6)


def test_gradients_travel_in_reduce_dtype():
    assert "bf16[" in program(devices=4, reduce_dtype=jnp.bfloat16).as_text()
    half, losses_of_half = run(2, devices=4, reduce_dtype=jnp.bfloat16)
    full, losses_of_full = run(2, devices=4)
    np.testing.assert_allclose(losses_of_half, losses_of_full, rtol=1e-2)
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), half.params, full.params)
    assert 0 < max(jax.tree.leaves(differences)) < 1e-2


def test_what_travels_is_gradients_and_statistics():
    """Per step: each gradient once; of batch norm, its means, their gradients, and moved ones."""
    _, state, *_ = setup()
    params, stats = (
        4 * sum(x.size for x in jax.tree.leaves(tree)) for tree in (state.params, state.batch_stats)
    )
    found = collectives_of(program(devices=8).as_text())
    assert set(found) == {"all-reduce"}
    assert found["all-reduce"].bytes == pytest.approx(params + 3 * stats, rel=0.01)


@pytest.mark.parametrize("name", ["efficientnetv2-s", "efficientnetv2-m", "efficientnetv2-b0"])
def test_statistics_are_a_small_part_of_what_travels(name):
    """The traffic is therefore within 5 % of parameters and statistics, each once."""
    model = abstract_model(name)
    params, stats = (
        sum(x.size for x in jax.tree.leaves(nnx.state(model, kind)))
        for kind in (nnx.Param, nnx.BatchStat)
    )
    assert params + 3 * stats == pytest.approx(params + stats, rel=0.05)


def test_what_does_not_divide_is_named():
    devices = jax.devices()[:8]
    with pytest.raises(UsageError, match=r"fsdp must divide the number of devices \(8\), got 3"):
        placement.make_mesh(devices, fsdp=3)
    mesh = placement.make_mesh(devices)
    with pytest.raises(UsageError, match=r"\(8 × 3 accumulation steps\), got 32"):
        placement.check_batch_size("batch_size", 32, mesh, 3)
    with pytest.raises(UsageError, match=r"bn_group_size must divide .* \(8\), got 3"):
        run(1, devices=8, bn_group_size=3)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((3, 3, 64, 256), 3),
        ((1, 1, 1536, 256), 2),
        ((7, 7, 101, 103), None),
        ((4,), None),
        ((1792, 1000), 0),
    ],
)
def test_the_longest_axis_that_can_be_is_split(shape, axis):
    mesh = placement.make_mesh(jax.devices()[:8], fsdp=8)
    assert placement.sharded_axis(shape, mesh) == axis


@pytest.mark.slow
def test_one_eight_and_thirty_two_devices_agree_over_ten_steps():
    """Run in a process of its own, because the number of simulated devices is fixed at the start.

    test_step.py compares one and eight devices over four steps.
    """
    environment = os.environ | {"XLA_FLAGS": xla_flags.for_devices(32)}
    script = pathlib.Path(__file__).with_name("on_1_8_and_32_devices.py")
    result = subprocess.run(
        [sys.executable, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    losses = np.array(found["losses"])
    assert losses.shape == (3, 10)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-5)
    assert losses[0, -1] < losses[0, 0]
    assert max(found["largest_difference"]) < 1e-4
