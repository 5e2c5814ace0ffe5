"""Batch norm folded into the convolutions: the same outputs without batch norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effnetv2_jax import create_model, fold_batch_norm
from effnetv2_jax.models import GroupSpec
from effnetv2_jax.models.layers import BatchNorm
from effnetv2_jax.runtime.errors import UsageError


def trained(name, **arguments):
    """Returns a model whose batch norms are not identities."""
    model = create_model(name, num_classes=10, rngs=nnx.Rngs(1), **arguments)
    rng = np.random.default_rng(0)
    for _, norm in nnx.iter_modules(model):
        if isinstance(norm, BatchNorm):
            channels = norm.scale[...].shape
            norm.scale.set_value(jnp.asarray(rng.uniform(0.5, 1.5, channels), jnp.float32))
            norm.bias.set_value(jnp.asarray(rng.normal(0, 0.5, channels), jnp.float32))
            norm.mean.set_value(jnp.asarray(rng.normal(0, 0.5, channels), jnp.float32))
            norm.var.set_value(jnp.asarray(rng.uniform(0.2, 3.0, channels), jnp.float32))
    return model


def images(size=33):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.standard_normal((2, size, size, 3)), jnp.float32)


forward = nnx.jit(lambda model, x: model(x))
features = nnx.jit(lambda model, x: model.features(x))


# As in Lite: ReLU6, no SE, and PyTorch's padding.
LITE = {
    "groups": (GroupSpec("mbconv", 1, 3, 1, 1, 8, 0.0), GroupSpec("mbconv", 2, 5, 2, 6, 16, 0.0)),
    "activation": "relu6",
    "padding": "symmetric",
}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("efficientnetv2-tiny", {}),
        ("efficientnetv2-tiny", LITE),
        pytest.param("efficientnetv2-b0", {}, marks=pytest.mark.slow),
        pytest.param("efficientnet-lite0", {}, marks=pytest.mark.slow),
    ],
    ids=["tiny", "tiny lite", "b0", "lite0"],
)
def test_a_folded_model_computes_the_same_without_batch_norm(name, fields):
    model = trained(name, **fields)
    folded = fold_batch_norm(model)
    assert not [m for _, m in nnx.iter_modules(folded) if isinstance(m, BatchNorm)]
    assert not jax.tree.leaves(nnx.state(folded, nnx.BatchStat))
    expected = np.asarray(forward(model, images()))
    assert np.ptp(expected) > 1e-3
    scale = np.abs(expected).max()
    np.testing.assert_allclose(forward(folded, images()), expected, atol=1e-5 * scale, rtol=1e-5)


def test_the_model_itself_stays_as_it_is():
    model = trained("efficientnetv2-tiny")
    kinds = nnx.Any(nnx.Param, nnx.BatchStat)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, kinds)))
    fold_batch_norm(model)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(model, kinds)))


def test_folding_twice_is_folding_once():
    folded = fold_batch_norm(trained("efficientnetv2-tiny"))
    twice = fold_batch_norm(folded)
    np.testing.assert_array_equal(forward(folded, images()), forward(twice, images()))


def test_features_are_the_same():
    model = trained("efficientnetv2-tiny")
    for name, found in features(fold_batch_norm(model), images()).items():
        np.testing.assert_allclose(found, features(model, images())[name], atol=1e-5, rtol=1e-5)


def test_a_folded_model_is_not_trained():
    folded = fold_batch_norm(create_model("efficientnetv2-tiny"))
    with pytest.raises(UsageError, match="folded batch norm cannot be trained"):
        folded(images(), train=True)


def test_half_precision_stays_half_precision():
    model = trained("efficientnetv2-tiny", dtype=jnp.bfloat16)
    folded = fold_batch_norm(model)
    shapes = nnx.eval_shape(lambda model, x: model.features(x), folded, images())
    assert {value.dtype for value in shapes.values()} == {jnp.dtype("bfloat16")}
    # The folded kernel is rounded to bfloat16, so that outputs differ by about its precision.
    np.testing.assert_allclose(forward(folded, images()), forward(model, images()), atol=0.1)


def test_an_abstract_model_can_be_folded():
    shapes = nnx.eval_shape(lambda: fold_batch_norm(create_model("efficientnetv2-tiny")))
    params = nnx.to_pure_dict(nnx.state(shapes, nnx.Param))["stem"]
    assert "norm" not in params
    assert params["conv"]["bias"].shape == params["conv"]["kernel"].shape[-1:]


def test_a_network_without_batch_norm_is_copied():
    model = create_model("deit-ti", num_classes=10, eval_size=32, depth=1)
    folded = fold_batch_norm(model)
    assert folded is not model
    np.testing.assert_array_equal(forward(folded, images(32)), forward(model, images(32)))
