"""The model as a plain NNX module and, through Flax's bridge, as a Linen module."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from effnetv2_jax.models import EfficientNet


def batch_stats(model: EfficientNet) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.BatchStat))]


def test_a_plain_nnx_loop_lowers_the_loss_and_moves_the_statistics(tiny_model, tiny_images):
    labels = jnp.arange(8) % 10
    optimizer = nnx.Optimizer(tiny_model, optax.sgd(0.1), wrt=nnx.Param)
    tiny_model.train()

    @nnx.jit
    def step(model, optimizer, images, labels):
        def loss_of(model):
            logits = model(images, dropout_rate=0.0)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, gradients = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradients)
        return loss

    before = batch_stats(tiny_model)
    losses = [float(step(tiny_model, optimizer, tiny_images, labels)) for _ in range(10)]

    assert np.isfinite(losses).all()
    assert losses[-1] < 0.7 * losses[0]
    for old, new in zip(before, batch_stats(tiny_model), strict=True):
        assert not np.array_equal(old, new)


@pytest.fixture(scope="module")
def linen(tiny_spec):
    return nnx.bridge.to_linen(EfficientNet, tiny_spec, num_classes=10)


@pytest.fixture(scope="module")
def variables(linen, tiny_images):
    """Linen's initial variables, with batch statistics other than 0 and 1."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = dict(jax.jit(linen.init)(keys, tiny_images))
    variables["batch_stats"] = jax.tree.map(
        lambda x: np.asarray(x) + 0.25, variables["batch_stats"]
    )
    return variables


@pytest.fixture(scope="module")
def train(linen, variables, tiny_images):
    """A function from a dropout key to the logits and changed variables of a training step."""

    @jax.jit
    def apply(key):
        return linen.apply(
            variables, tiny_images, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )

    return apply


def model_with(variables, spec) -> EfficientNet:
    """Returns the NNX module with the same variables."""
    model = EfficientNet(spec, num_classes=10, rngs=nnx.Rngs(9))
    for kind, collection in ((nnx.Param, "params"), (nnx.BatchStat, "batch_stats")):
        theirs = {
            tuple(str(key.key) for key in path): value
            for path, value in jax.tree_util.tree_leaves_with_path(variables[collection])
        }
        ours = nnx.to_flat_state(nnx.state(model, kind))
        assert {tuple(map(str, path)) for path, _ in ours} == theirs.keys()
        nnx.update(model, nnx.from_flat_state({p: theirs[tuple(map(str, p))] for p, _ in ours}))
    return model


def test_linen_has_params_and_batch_stats_and_the_nnx_modules_logits(
    linen, variables, tiny_spec, tiny_images
):
    assert {"params", "batch_stats"} <= variables.keys()
    logits = jax.jit(linen.apply)(variables, tiny_images)
    expected = nnx.jit(lambda model, x: model(x))(model_with(variables, tiny_spec), tiny_images)
    assert logits.shape == (8, 10)
    assert np.std(logits) > 0
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)


def test_linen_has_the_nnx_modules_logits_and_gradients_in_training_to_the_last_bit(
    variables, tiny_spec, tiny_images
):
    spec = dataclasses.replace(tiny_spec, survival_prob=1.0)
    linen = nnx.bridge.to_linen(EfficientNet, spec, num_classes=10)

    def of_linen(params, images):
        logits, _ = linen.apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            images,
            train=True,
            dropout_rate=0.0,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        return jnp.sin(logits).sum(), logits

    def of_nnx(model, images):
        logits = model(images, train=True, dropout_rate=0.0)
        return jnp.sin(logits).sum(), logits

    model = model_with(variables, spec)
    linen_grad = jax.jit(jax.value_and_grad(of_linen, has_aux=True))
    nnx_grad = nnx.jit(nnx.value_and_grad(of_nnx, has_aux=True))
    (_, logits), gradients = linen_grad(variables["params"], tiny_images)
    (_, expected), theirs = nnx_grad(model, tiny_images)
    np.testing.assert_array_equal(logits, expected)
    found = {
        tuple(str(key.key) for key in path): value
        for path, value in jax.tree_util.tree_leaves_with_path(gradients)
    }
    flat = nnx.to_flat_state(theirs)
    assert found.keys() == {tuple(map(str, path)) for path, _ in flat}
    for path, gradient in flat:
        np.testing.assert_array_equal(found[tuple(map(str, path))], gradient[...], str(path))
    assert max(np.abs(x).max() for x in found.values()) > 0


def test_linen_features(linen, variables, tiny_spec, tiny_images):
    apply = jax.jit(lambda variables, x: linen.apply(variables, x, nnx_method="features"))
    features = apply(variables, tiny_images)
    expected = nnx.jit(lambda model, x: model.features(x))(
        model_with(variables, tiny_spec), tiny_images
    )
    assert sorted(features) == sorted(expected) == [f"reduction_{i}" for i in (1, 2, 3)]
    for name, value in features.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-6)


def test_linen_variables_come_back_from_files_without_their_integer_keys(
    linen, variables, tiny_images, tmp_path
):
    """msgpack, and Orbax without a target, have only text as keys (docs/library.md)."""
    import orbax.checkpoint as ocp
    from flax import serialization

    saved = serialization.to_state_dict(variables)
    packed = serialization.msgpack_restore(serialization.msgpack_serialize(saved))
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "x", variables)
        stored = checkpointer.restore(tmp_path / "x")
    assert "0" in packed["params"]["blocks"] and "0" in stored["params"]["blocks"]
    target = jax.eval_shape(linen.init, jax.random.key(0), tiny_images)
    apply = jax.jit(linen.apply)
    expected = apply(variables, tiny_images)
    for found in (packed, stored):
        again = serialization.from_state_dict(target, found)
        np.testing.assert_array_equal(apply(again, tiny_images), expected)


def test_linen_training_updates_batch_stats_as_the_nnx_module_does(
    train, variables, tiny_spec, tiny_images
):
    _, changed = train(jax.random.key(2))
    assert changed.keys() == {"batch_stats"}
    model = model_with(variables, tiny_spec)
    nnx.jit(lambda model, x: model.stem(x, True))(model, tiny_images)
    stem, before = changed["batch_stats"]["stem"]["norm"], variables["batch_stats"]["stem"]["norm"]
    for name in ("mean", "var"):
        expected = getattr(model.stem.norm, name)[...]
        assert not np.array_equal(stem[name], before[name])
        np.testing.assert_allclose(stem[name], expected, rtol=1e-5)
    pairs = zip(
        jax.tree.leaves(changed["batch_stats"]),
        jax.tree.leaves(variables["batch_stats"]),
        strict=True,
    )
    assert not any(np.array_equal(new, old) for new, old in pairs)


def test_linen_training_is_random_by_the_dropout_key(train):
    first, again, other = (np.asarray(train(jax.random.key(seed))[0]) for seed in (2, 2, 3))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_linen_evaluation_needs_no_dropout_key(linen, variables, tiny_images):
    apply = jax.jit(lambda rngs: linen.apply(variables, tiny_images, rngs=rngs))
    with_key = apply({"dropout": jax.random.key(5)})
    np.testing.assert_array_equal(apply({}), with_key)


def test_linen_init_takes_a_single_key(linen, tiny_images):
    variables = jax.eval_shape(linen.init, jax.random.key(0), tiny_images)
    assert {"params", "batch_stats"} <= variables.keys()
