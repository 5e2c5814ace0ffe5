"""The training and evaluation steps of a tiny network, on 1 and on 8 simulated devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from flax import nnx

from effnetv2_jax.models import EfficientNet, get_spec
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training import evaluation, losses, step
from effnetv2_jax.training import mesh as placement
from effnetv2_jax.training.optimizers import make_optimizer
from effnetv2_jax.training.state import create_state, functional

CLASSES = 10
BATCH = 16
# Without randomness, unless a test needs it.
SPEC = dataclasses.replace(get_spec("efficientnetv2-tiny"), survival_prob=1.0)
SCALARS = {name: np.float32(0) for name in ("dropout_rate", "mixup_alpha", "cutmix_alpha")}
# With everything that is random.
RANDOM_SCALARS = {
    "dropout_rate": np.float32(0.5),
    "mixup_alpha": np.float32(0.2),
    "cutmix_alpha": np.float32(1.0),
}
RANDOM = {"scalars": RANDOM_SCALARS, "survival_prob": 0.8, "mixing": True}
FAMILY = {"mean": (128.0,) * 3, "std": (128.0,) * 3}
OPTIMIZER = make_optimizer("momentum", lambda count: 0.05)


# The defaults of setups, so that equal setups share compiled programs: compiling takes most time.
DEFAULTS = {
    "devices": 1,
    "fsdp": 1,
    "bn_group_size": None,
    "remat": "none",
    "survival_prob": 1.0,
    "mixing": False,
}


def setup(devices=1, **keywords):
    """Returns mesh, initial state, training step and apply; equal arguments share them."""
    return _setup(**DEFAULTS | {"devices": devices} | keywords)


@functools.cache
def _setup(devices, fsdp, bn_group_size, remat, survival_prob, **keywords):
    mesh = placement.make_mesh(jax.devices()[:devices], fsdp=fsdp)
    model = EfficientNet(
        dataclasses.replace(SPEC, survival_prob=survival_prob),
        num_classes=CLASSES,
        axis_name=placement.AXES,
        bn_group_size=bn_group_size,
        remat=remat,
        rngs=nnx.Rngs(0),
    )
    apply, params, batch_stats = functional(model)
    state = create_state(params, batch_stats, OPTIMIZER)
    train_step = step.make_train_step(
        apply, OPTIMIZER, mesh=mesh, num_classes=CLASSES, **(FAMILY | keywords)
    )
    return mesh, state, train_step, apply


def batch_of(seed=0, size=16, count=BATCH):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (BATCH, size, size, 3)).astype(np.uint8),
        "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
        "mask": (np.arange(BATCH) < count).astype(np.float32),
    }


def run(steps, devices=1, scalars=SCALARS, first_seed=0, rows=None, **keywords):
    """Returns the state and the losses of some steps; ``rows`` reorders each batch, with index."""
    mesh, state, train_step, _ = setup(devices, **keywords)
    state = placement.shard_state(jax.tree.map(jnp.copy, state), mesh)
    losses = []
    for seed in range(first_seed, first_seed + steps):
        batch = batch_of(seed)
        if rows is not None:
            batch = {name: x[rows] for name, x in batch.items()} | {"index": np.int32(rows)}
        state, sums = train_step(state, placement.shard_batch(batch, mesh), scalars)
        losses.append(float(sums["loss"] / sums["count"]))
    return jax.device_get(state), losses


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_eight_devices_compute_what_one_does():
    """Synchronised batch norm and one mean gradient make the split of the batch invisible."""
    one, losses_of_one = run(4)
    eight, losses_of_eight = run(4, devices=8)
    np.testing.assert_allclose(losses_of_eight, losses_of_one, rtol=1e-5)
    assert_trees_close(eight.params, one.params, rtol=1e-4, atol=1e-5)
    assert_trees_close(eight.batch_stats, one.batch_stats, rtol=1e-4, atol=1e-5)


def test_eight_devices_draw_what_one_does():
    one, losses_of_one = run(4, **RANDOM)
    eight, losses_of_eight = run(4, devices=8, **RANDOM)
    np.testing.assert_allclose(losses_of_eight, losses_of_one, rtol=1e-5)
    assert_trees_close(eight.params, one.params, rtol=1e-4, atol=1e-5)
    assert_trees_close(eight.batch_stats, one.batch_stats, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixing", [False, True])
def test_what_is_drawn_for_an_example_goes_with_its_number(mixing):
    """The place of its pair, or without mixing of the example, changes nothing."""
    rng = np.random.default_rng(3)
    rows = rng.permutation(np.arange(BATCH).reshape(-1, 2)).reshape(-1)
    scalars = RANDOM_SCALARS if mixing else SCALARS | {"dropout_rate": np.float32(0.5)}
    random = RANDOM | {"scalars": scalars}
    if not mixing:
        # As two processes read a batch.
        rows = np.r_[0:BATCH:2, 1:BATCH:2]
    _, losses = run(2, devices=2, **random)
    _, losses_of_reordered = run(2, devices=4, rows=rows, **random)
    np.testing.assert_allclose(losses_of_reordered, losses, rtol=1e-5)


def test_other_numbers_draw_otherwise():
    mesh, state, train_step, _ = setup(survival_prob=0.8, mixing=True)

    def loss(batch, step=0):
        batch = placement.shard_batch(batch, mesh)
        arguments = (state.params, state.batch_stats, step, batch, RANDOM_SCALARS)
        return float(train_step.gradients(*arguments)[-1]["loss"])

    batch, places = batch_of(), np.arange(BATCH, dtype=np.int32)
    assert loss(batch) == loss(batch | {"index": places})
    different = [batch | {"index": places[::-1]}, batch | {"index": places + BATCH}]
    losses = [loss(batch), loss(batch, step=1), *map(loss, different)]
    assert np.diff(np.sort(losses)).min() > 1e-5 * losses[0]


def test_the_gradient_is_that_of_the_mean_loss():
    """One momentum step from zero momentum is −rate · gradient, which jax.grad gives here."""
    _, state, *_ = setup()
    # A model that knows nothing of devices.
    apply, *_ = functional(EfficientNet(SPEC, num_classes=CLASSES, rngs=nnx.Rngs(0)))
    batch = batch_of(0)
    images = jnp.asarray(batch["image"], jnp.float32) / 128 - 1

    def loss(params):
        logits, _ = apply(
            params, state.batch_stats, images, train=True, key=jax.random.key(0), dropout_rate=0
        )
        log_probs = jax.nn.log_softmax(logits)
        return -jnp.mean(log_probs[jnp.arange(BATCH), batch["label"]])

    expected = jax.tree.map(lambda p, g: p - 0.05 * g, state.params, jax.grad(loss)(state.params))
    moved, _ = run(1)
    assert_trees_close(moved.params, expected, rtol=1e-4, atol=1e-6)


def test_training_lowers_the_loss_on_a_batch():
    mesh, state, train_step, _ = setup()
    state = placement.shard_state(jax.tree.map(jnp.copy, state), mesh)
    batch = placement.shard_batch(batch_of(), mesh)
    losses = []
    for _ in range(20):
        state, sums = train_step(state, batch, SCALARS)
        losses.append(float(sums["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == 20


def test_randomness_depends_on_the_seed():
    scalars = SCALARS | {"dropout_rate": np.float32(0.5)}
    first, _ = run(2, scalars=scalars)
    again, _ = run(2, scalars=scalars)
    assert_trees_close(first.params, again.params, rtol=0)
    other, _ = run(2, scalars=scalars, seed=1)
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), first.params, other.params)
    assert max(jax.tree.leaves(differences)) > 0


def test_a_new_dropout_rate_does_not_compile_again():
    *_, train_step, _ = setup()
    run(1)
    programs = (train_step.gradients, train_step.update)
    compiled = [program._cache_size() for program in programs]
    run(1, scalars=SCALARS | {"dropout_rate": np.float32(0.3)})
    assert [program._cache_size() for program in programs] == compiled


def test_a_step_compiled_ahead_computes_the_same_without_compiling(caplog):
    mesh, state, train_step, _ = setup()
    batch = placement.shard_batch(batch_of(), mesh)
    shapes = placement.abstract(placement.shard_state(state, mesh))
    compiled = dataclasses.replace(
        train_step,
        gradients=train_step.lower_gradients(shapes, placement.abstract(batch), SCALARS).compile(),
        update=train_step.lower_update(shapes).compile(),
    )
    results = []
    with jax.log_compiles():
        for function in (train_step, compiled):
            caplog.clear()
            own = placement.shard_state(jax.tree.map(jnp.copy, state), mesh)
            results.append(jax.device_get(function(own, batch, SCALARS)))
            # Donated: the old state is gone.
            assert all(x.is_deleted() for x in jax.tree.leaves(own.params))
    assert "XLA compilation" not in caplog.text
    assert_trees_close(*results, rtol=0)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_masked_examples_count_neither_in_metrics_nor_in_the_loss(alpha):
    """Their labels change nothing, with and without Mixup."""
    mesh, state, train_step, _ = setup(mixing=alpha > 0)
    scalars = SCALARS | {"mixup_alpha": np.float32(alpha)}
    batch = batch_of(count=12)
    other = batch | {"label": np.where(batch["mask"] > 0, batch["label"], batch["label"] ^ 1)}
    one, another = (
        train_step(
            placement.shard_state(jax.tree.map(jnp.copy, state), mesh),
            placement.shard_batch(batch, mesh),
            scalars,
        )
        for batch in (batch, other)
    )
    assert float(one[1]["count"]) == 12
    assert_trees_close(one, another, rtol=0)


def test_label_vectors_are_the_same_as_their_indices():
    mesh, state, train_step, _ = setup()
    batch = batch_of()
    vectors = batch | {"label": np.eye(CLASSES, dtype=np.float32)[batch["label"]]}
    losses = [
        float(
            train_step(
                placement.shard_state(jax.tree.map(jnp.copy, state), mesh),
                placement.shard_batch(b, mesh),
                SCALARS,
            )[1]["loss"]
        )
        for b in (batch, vectors)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_ema_is_tensorflows():
    """min(decay, (1 + n) / (10 + n)) of tf.train.ExponentialMovingAverage(num_updates=n)."""
    decay = 0.4
    mesh, state, train_step, _ = setup(1, ema_decay=decay)
    state = placement.shard_state(jax.tree.map(jnp.copy, state), mesh)
    kernel = tf.Variable(np.asarray(state.params["classifier"]["kernel"]))
    mean = tf.Variable(np.asarray(state.batch_stats["stem"]["norm"]["mean"]))
    updates = tf.Variable(0)
    ema = tf.train.ExponentialMovingAverage(decay, num_updates=updates)
    ema.apply([kernel, mean])
    for seed in range(6):
        state, _ = train_step(state, placement.shard_batch(batch_of(seed), mesh), SCALARS)
        kernel.assign(np.asarray(state.params["classifier"]["kernel"]))
        mean.assign(np.asarray(state.batch_stats["stem"]["norm"]["mean"]))
        updates.assign_add(1)
        ema.apply([kernel, mean])
    np.testing.assert_allclose(
        state.ema_params["classifier"]["kernel"], ema.average(kernel), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(
        state.ema_batch_stats["stem"]["norm"]["mean"], ema.average(mean), rtol=1e-5, atol=1e-7
    )


@pytest.fixture(scope="module")
def evaluator():
    mesh, state, _, apply = setup(8)
    eval_step = evaluation.make_eval_step(apply, mesh=mesh, **FAMILY)
    return lambda batches: evaluation.evaluate(
        eval_step, state.params, state.batch_stats, batches, mesh
    )


def test_evaluation_agrees_with_tensorflow(evaluator):
    _, state, _, apply = setup(8)
    batches = [batch_of(seed) for seed in range(3)]
    images = np.concatenate([b["image"] for b in batches])
    labels = np.concatenate([b["label"] for b in batches])
    logits, _ = apply(
        state.params, state.batch_stats, images.astype(np.float32) / 128 - 1, train=False
    )
    results = evaluator(batches)
    in_top = {k: tf.math.in_top_k(labels, np.asarray(logits), k).numpy().mean() for k in (1, 5)}
    loss = tf.keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    assert results["top1"] == pytest.approx(in_top[1])
    assert results["top5"] == pytest.approx(in_top[5])
    assert results["loss"] == pytest.approx(float(tf.reduce_mean(loss)), rel=1e-4)
    assert results["count"] == 3 * BATCH


def test_padding_counts_nothing(evaluator):
    full, half = batch_of(0), batch_of(1, count=BATCH // 2)
    rubbish = half | {"image": half["image"].copy()}
    rubbish["image"][BATCH // 2 :] = 255
    assert evaluator([full, half]) == evaluator([full, rubbish])
    assert evaluator([full, half])["count"] == BATCH + BATCH // 2


def test_of_several_labels_any_is_right_and_images_without_one_are_not_counted(evaluator):
    """As ReaL counts; evaluating each label by itself gives the expected result."""
    batch = batch_of()
    several = np.full((BATCH, 3), -1, np.int32)
    several[1:, 0] = batch["label"][1:]
    several[1:, 2] = (batch["label"][1:] + 1) % CLASSES

    def top1_of_each(labels):
        return np.array(
            [
                evaluator([batch | {"label": labels, "mask": np.eye(BATCH, dtype=np.float32)[i]}])[
                    "top1"
                ]
                for i in range(1, BATCH)
            ]
        )

    expected = np.maximum(top1_of_each(several[:, 0]), top1_of_each(several[:, 2]))
    results = evaluator([batch | {"label": several}])
    assert results["count"] == BATCH - 1
    assert results["top1"] == pytest.approx(expected.mean())
    assert np.isfinite(results["loss"])


def test_several_labels_share_the_target():
    labels = jnp.array([[2, 0, -1, -1], [1, -1, -1, -1], [-1, -1, -1, -1]])
    expected = [[0.5, 0, 0.5], [0, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(losses.targets_of(labels, 3), expected)
    np.testing.assert_allclose(losses.targets_of(labels[1:2, 0], 3), expected[1:2])


def test_nothing_to_evaluate_is_an_error(evaluator):
    with pytest.raises(UsageError, match="no examples"):
        evaluator([])


def test_a_batch_that_the_devices_do_not_divide_is_named():
    mesh = placement.make_mesh(jax.devices()[:8])
    with pytest.raises(UsageError, match=r"batch_size must be a multiple .* \(8\), got 12"):
        placement.check_batch_size("batch_size", 12, mesh)
