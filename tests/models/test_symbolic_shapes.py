"""Programs exported for images of a number and size that are not known yet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from effnetv2_jax.models import create_model


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def exported(function, *shape, **arguments):
    """Returns the program after it was written and read again."""
    spec = jax.ShapeDtypeStruct(shape, jnp.float32)
    program = export.export(jax.jit(function), platforms=("cpu", "tpu"))(spec)
    return export.deserialize(program.serialize(**arguments))


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_batch_and_size_may_be_unknown(padding):
    model = create_model("efficientnetv2-tiny", num_classes=3, padding=padding)
    batch, height, width = export.symbolic_shape("batch, height, width")
    program = exported(lambda x: model(x), batch, height, width, 3)
    # Odd and even sizes have other paddings; small ones leave out taps if they are known.
    for shape in ((3, 33, 46, 3), (1, 7, 64, 3)):
        expected = jax.jit(lambda x: model(x))(images(*shape))
        np.testing.assert_allclose(program.call(images(*shape)), expected, atol=1e-6)


def test_gradients_may_be_of_an_unknown_batch():
    model = create_model("efficientnetv2-tiny", num_classes=3)
    (batch,) = export.symbolic_shape("batch")
    program = exported(lambda x: model(x), batch, 24, 24, 3, vjp_order=1)
    x = images(17, 24, 24, 3)
    expected = jax.jit(jax.grad(lambda x: model(x).sum()))(x)
    found = jax.grad(lambda x: program.call(x).sum())(x)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def test_a_vit_takes_any_batch():
    model = create_model("deit-ti", num_classes=3, eval_size=32, depth=1)
    (batch,) = export.symbolic_shape("batch")
    x = images(3, 32, 32, 3)
    program = exported(lambda x: model(x), batch, 32, 32, 3)
    np.testing.assert_allclose(program.call(x), model(x), atol=1e-5)
