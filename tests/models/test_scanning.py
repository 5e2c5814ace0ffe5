"""A model with loops compared with the same model without."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effnetv2_jax.models import EfficientNet, create_model, get_spec
from effnetv2_jax.models.folding import fold_batch_norm
from effnetv2_jax.models.scanning import equal_runs
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training.state import functional


@pytest.fixture(scope="module")
def spec(tiny_spec):
    """Three blocks in every group. The last two are equal, and sometimes all three."""
    groups = tuple(dataclasses.replace(group, repeats=3) for group in tiny_spec.groups)
    return dataclasses.replace(tiny_spec, groups=groups)


def model_of(spec, **options):
    return EfficientNet(spec, num_classes=10, rngs=nnx.Rngs(0), **options)


def step(spec, images, **options):
    """Returns the logits, gradients and moved statistics of a training step."""
    apply, params, batch_stats = functional(model_of(spec, **options))

    @jax.jit
    def run(params, batch_stats):
        def loss(params):
            logits, moved = apply(
                params, batch_stats, images, train=True, key=jax.random.key(1), dropout_rate=0.2
            )
            return (logits**2).mean(), (logits, moved)

        gradients, (logits, moved) = jax.grad(loss, has_aux=True)(params)
        return logits, gradients, moved

    return run(params, batch_stats)


@pytest.fixture(scope="module")
def expected(spec, tiny_images):
    return step(spec, tiny_images)


@pytest.mark.parametrize("remat", ["none", "blocks", "stages"])
def test_training_is_that_of_the_model_without_loops(spec, tiny_images, expected, remat):
    """Random numbers and parameter names are the same too, so that weights fit both."""
    found = step(spec, tiny_images, remat=remat, scan_blocks=True)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for value, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-3, atol=1e-5)


def test_inference_and_features_are_those_of_the_model_without_loops(spec, tiny_images):
    plain, looped = model_of(spec), model_of(spec, scan_blocks=True)
    both = nnx.jit(lambda model, images: (model(images), model.features(images)))
    expected = both(plain, tiny_images)
    for found in (both(looped, tiny_images), both(fold_batch_norm(looped), tiny_images)):
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for value, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-5)


def test_equal_blocks_are_those_that_follow_each_other_in_a_group():
    runs = equal_runs(get_spec("efficientnetv2-s").blocks)
    assert [len(run) for run in runs] == [2, 1, 3, 1, 3, 1, 5, 1, 8, 1, 14]
    assert [number for run in runs for number in run] == list(range(40))


def test_a_loop_holds_its_block_once(spec, tiny_images):
    def convolutions(**options):
        apply, params, batch_stats = functional(model_of(spec, **options))

        def logits(params):
            return apply(params, batch_stats, tiny_images, train=False)[0]

        return str(jax.make_jaxpr(logits)(params)).count("custom_jvp_call")

    assert convolutions(scan_blocks=True) < 0.8 * convolutions()


def test_a_network_without_such_blocks_says_so():
    with pytest.raises(UsageError, match="scan_blocks must be False for deit-ti"):
        create_model("deit-ti", scan_blocks=True)


def test_a_survival_probability_in_bfloat16_leaves_the_dtype_alone(spec, tiny_images):
    apply, *state = functional(model_of(spec, dtype=jnp.bfloat16, scan_blocks=True))

    def logits_of(*state):
        return apply(*state, tiny_images, train=True, key=jax.random.key(0))[0]

    logits = jax.eval_shape(logits_of, *state)
    assert logits.dtype == jnp.float32
