"""Programs that are the same for every platform: plain operations, with the same results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effnetv2_jax import create_model, fold_batch_norm
from effnetv2_jax.models.kernels.platforms import neutral_platform

IMAGES = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
# What other formats have no operation for: choices by platform, and calls of XLA's own.
FOREIGN = ("platform_index", "optimization_barrier", "inlineable")


@pytest.mark.parametrize("folded", [False, True])
def test_the_neutral_program_has_plain_operations_and_the_same_results(folded):
    model = create_model("efficientnetv2-tiny", num_classes=10, rngs=nnx.Rngs(0))
    model = fold_batch_norm(model) if folded else model

    def traced():
        # A new function: JAX keeps what it has traced.
        return jax.jit(lambda images: model(images)).trace(jnp.asarray(IMAGES))

    usual = traced()
    with neutral_platform():
        neutral = traced()
    again = traced()
    assert "platform_index" in str(usual.jaxpr)
    assert str(again.jaxpr).count("platform_index") == str(usual.jaxpr).count("platform_index")
    text = neutral.lower().as_text()
    assert not [word for word in FOREIGN if word in str(neutral.jaxpr) or word in text]
    expected = usual.lower().compile()(IMAGES)
    found = neutral.lower().compile()(IMAGES)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_convolution_of_one_pixel_is_a_convolution_there():
    model = create_model("efficientnetv2-tiny", num_classes=10)
    with neutral_platform():
        jaxpr = str(jax.make_jaxpr(lambda images: model(images))(jnp.asarray(IMAGES)))
    # What is left is the classifier's.
    assert jaxpr.count("dot_general") == 1
