"""A network without batch statistics goes through everything that has them for others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from effnetv2_jax.models import VisionTransformer, VisionTransformerSpec
from effnetv2_jax.training import evaluation, step
from effnetv2_jax.training import mesh as placement
from effnetv2_jax.training.state import create_state, functional
from effnetv2_jax.training.survival.checkpoint import Checkpoints

SPEC = VisionTransformerSpec("tiny", 4, 48, 2, 4, 16, "vit", survival_prob=0.7)
CLASSES = 5
BATCH = 16
SCALARS = {
    "dropout_rate": np.float32(0.3),
    "mixup_alpha": np.float32(0.2),
    "cutmix_alpha": np.float32(0),
}
FAMILY = {"mean": (127.5,) * 3, "std": (127.5,) * 3}
OPTIMIZER = optax.sgd(0.1)


@functools.cache
def setup(devices=1, fsdp=1, **keywords):
    """(mesh, state on it, training step, apply)."""
    mesh = placement.make_mesh(jax.devices()[:devices], fsdp=fsdp)
    model = VisionTransformer(SPEC, num_classes=CLASSES, rngs=nnx.Rngs(0))
    apply, params, batch_stats = functional(model)
    train_step = step.make_train_step(
        apply, OPTIMIZER, mesh=mesh, num_classes=CLASSES, mixing=True, **FAMILY, **keywords
    )
    return mesh, create_state(params, batch_stats, OPTIMIZER), train_step, apply


def batch_of(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (BATCH, 16, 16, 3)).astype(np.uint8),
        "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
        "mask": np.ones(BATCH, np.float32),
    }


def run(steps=2, scalars=SCALARS, **keywords):
    mesh, state, train_step, _ = setup(**keywords)
    state = placement.shard_state(jax.tree.map(jnp.copy, state), mesh)
    losses = []
    for seed in range(steps):
        batch = placement.shard_batch(batch_of(seed), mesh)
        state, sums = train_step(state, batch, scalars)
        assert float(sums["finite"]) == 1
        losses.append(float(sums["loss"] / sums["count"]))
    return jax.device_get(state), losses


def test_a_step_moves_every_parameter_and_its_average():
    _, start, _, _ = setup()
    state, losses = run(steps=1)
    assert np.isfinite(losses).all()
    assert state.batch_stats == state.ema_batch_stats == {}
    before, after, average = map(jax.tree.leaves, (start.params, state.params, state.ema_params))
    # (1 + step) / (10 + step) of the average is what it was.
    for old, new, mean in zip(before, after, average, strict=True):
        assert not np.array_equal(old, new)
        np.testing.assert_allclose(mean, old + (new - old) * 9 / 11, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("split", [{"devices": 8}, {"devices": 8, "fsdp": 4}])
def test_eight_devices_compute_what_one_does(split):
    one, losses_of_one = run()
    eight, losses_of_eight = run(**split)
    np.testing.assert_allclose(losses_of_eight, losses_of_one, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(eight.params), jax.tree.leaves(one.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_parts_of_a_batch_add_up():
    # Each part would mix with a ratio of its own.
    scalars = SCALARS | {"mixup_alpha": np.float32(0)}
    one, losses_of_one = run(scalars=scalars)
    parts, losses_of_parts = run(scalars=scalars, accumulation_steps=2)
    assert parts.batch_stats == {}
    np.testing.assert_allclose(losses_of_parts, losses_of_one, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(parts.params), jax.tree.leaves(one.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_evaluation():
    mesh, state, _, apply = setup(devices=8)
    eval_step = evaluation.make_eval_step(apply, mesh=mesh, **FAMILY)
    batch = batch_of()
    results = evaluation.evaluate(eval_step, state.params, state.batch_stats, [batch], mesh)
    logits, batch_stats = apply(
        state.params, state.batch_stats, batch["image"] / np.float32(127.5) - 1, train=False
    )
    assert batch_stats == {}
    assert results["top1"] == pytest.approx((logits.argmax(-1) == batch["label"]).mean())


def test_a_checkpoint_comes_back(tmp_path):
    mesh, start, _, _ = setup()
    state, _ = run()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(placement.shard_state(state, mesh), {"config": {}, "class_names": []})
    checkpoints.close()
    read = Checkpoints(tmp_path, read_only=True)
    again = read.restore(jax.eval_shape(lambda: start), mesh, read.choose("newest"))
    assert again.batch_stats == again.ema_batch_stats == {}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), state)
