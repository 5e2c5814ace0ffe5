"""Batch norm's activations: gradients, use as arrays, and what is computed again on TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from effnetv2_jax.models.kernels import convolutions
from effnetv2_jax.models.kernels.activations import (
    ACTIVATIONS,
    Normalized,
    gated,
    normalize,
    scale_shift,
)
from tests.models.kernels.against_xla import assert_close, normal, reference


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scale_and_shift_has_the_gradients_that_jax_derives(activation, dtype):
    x, scale, shift = normal(0, 2, 3, 3, 4, dtype=dtype), 3 * normal(1, 4), normal(2, 4)

    def plain(x, scale, shift):
        z = (x.astype(jnp.float32) * scale + shift).astype(dtype)
        return z if activation is None else ACTIVATIONS[activation](z)

    def gradients(function):
        out, pull = jax.vjp(function, x, scale, shift)
        return out, *pull(jnp.sin(out))

    ours = gradients(lambda *arguments: scale_shift(*arguments, activation, dtype))
    assert_close(ours, gradients(plain), 1e-6 if dtype == jnp.float32 else 1e-2)


def test_training_keeps_only_the_input_of_an_activation():
    """The backward pass computes the activation and its derivative again."""
    x = normal(0, 2, 8, 8, 4)
    _, pull = jax.vjp(lambda x: scale_shift(x, jnp.ones(4), jnp.zeros(4), "silu", x.dtype), x)
    kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.size >= x.size]
    assert len(kept) == 1
    np.testing.assert_array_equal(kept[0], x)


def block(x, scale, shift, gate, kernel):
    """Computes what an MBConv does after its expansion, with our functions."""
    z = normalize(x, scale, shift, "silu", x.dtype)
    z = convolutions.depthwise_conv(z, kernel["depthwise"])
    z = gated(normalize(z, scale, shift, "silu", z.dtype), gate)
    return convolutions.conv(z, kernel["project"])


def plain_block(x, scale, shift, gate, kernel):
    """Computes the same with XLA's functions and JAX's derivatives."""
    z = reference(jax.nn.silu(x * scale + shift), kernel["depthwise"])
    return reference(jax.nn.silu(z * scale + shift) * gate, kernel["project"])


def arguments():
    kernel = {"depthwise": normal(4, 3, 3, 1, 6), "project": normal(5, 1, 1, 6, 4)}
    gate = jax.nn.sigmoid(normal(3, 2, 1, 1, 6))
    return normal(0, 2, 5, 4, 6), normal(1, 6), normal(2, 6), gate, kernel


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_block_has_the_gradients_that_jax_derives(as_if_on, platform):
    """On TPU, activations are computed again from what the value remembers."""
    as_if_on(platform)

    def gradients(function):
        out, pull = jax.vjp(function, *arguments())
        return jax.tree.leaves((out, pull(jnp.cos(out))))

    assert_close(gradients(block), gradients(plain_block), 1e-5)


def test_an_activation_is_computed_again_only_on_tpu():
    gradient = jax.jit(jax.grad(lambda *args: block(*args).sum(), range(5)))
    again = {
        platform: export.export(gradient, platforms=[platform])(*arguments())
        .mlir_module()
        .count("stablehlo.optimization_barrier")
        for platform in ("cpu", "tpu", "cuda")
    }
    # For the gradients of the two convolutions and of the gate.
    assert again == {"cpu": 0, "tpu": 3, "cuda": 0}


def test_the_forward_pass_computes_each_activation_once():
    jaxpr = jax.make_jaxpr(block)(*arguments())
    assert str(jaxpr).count("name=scale_shift") == 2


# A value in place of an array.


def value_of(x):
    return normalize(x, jnp.arange(1.0, 4.0), jnp.ones(3), "silu", jnp.float32)


def array_of(x):
    return jax.nn.silu(x * jnp.arange(1.0, 4.0) + 1)


def scanned(function):
    return lambda x: lax.scan(lambda x, _: (jnp.tanh(function(x)), None), x, length=3)[0]


TRANSFORMATIONS = {
    "nothing": lambda function: function,
    "jit": jax.jit,
    "grad": lambda function: jax.grad(lambda x: jnp.sin(function(x)).sum()),
    "vmap": jax.vmap,
    "remat": lambda function: jax.grad(lambda x: jax.remat(function)(x).sum()),
    "scan": scanned,
    "grad of scan": lambda function: jax.grad(lambda x: scanned(function)(x).sum()),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_value_is_used_as_an_array_inside_of_a_transformation(name):
    transform, x = TRANSFORMATIONS[name], normal(0, 2, 4, 4, 3)
    ours = transform(lambda x: jnp.asarray(value_of(x)) + jnp.mean(value_of(x), -1)[..., None])
    theirs = transform(lambda x: array_of(x) + array_of(x).mean(-1, keepdims=True))
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_a_value_passes_through_transformations():
    """It comes out as a value, which a convolution outside takes as before."""
    x, kernel = normal(0, 2, 4, 4, 3), normal(1, 1, 1, 3, 5)
    values = [
        jax.jit(value_of)(x),
        jax.vmap(value_of, out_axes=Normalized(0, None, None, None, 0, "silu"))(x),
        jax.remat(value_of)(x),
        lax.scan(lambda carry, _: (value_of(x), None), value_of(0 * x), length=2)[0],
    ]
    for value in values:
        assert isinstance(value, Normalized)
        np.testing.assert_allclose(
            convolutions.conv(value, kernel), reference(array_of(x), kernel), rtol=1e-5, atol=1e-5
        )


def test_a_value_in_arithmetic_and_in_numpy():
    x = normal(0, 2, 4, 4, 3)
    value, array = value_of(x), array_of(x)
    assert (value.shape, value.dtype) == (array.shape, array.dtype)
    np.testing.assert_allclose(value, array, rtol=1e-6)
    np.testing.assert_allclose(x + value, x + array, rtol=1e-6)
    np.testing.assert_allclose(value * x, array * x, rtol=1e-6)
    assert np.isfinite(value).all()


def test_a_value_of_another_dtype_is_a_plain_array():
    value = value_of(normal(0, 2, 4, 4, 3))
    assert value.astype(jnp.float32) is value
    cast = value.astype(jnp.bfloat16)
    assert isinstance(cast, jax.Array) and cast.dtype == jnp.bfloat16


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_two_gates_in_a_row(as_if_on, platform):
    """A value remembers one gate; the gradients by both and after both are right all the same."""
    as_if_on(platform)
    x, *gates = normal(0, 2, 4, 4, 3), normal(1, 2, 1, 1, 3), normal(2, 2, 1, 1, 3)
    kernel = normal(3, 1, 1, 3, 5)

    def gradients(function):
        out, pull = jax.vjp(function, x, *gates, kernel)
        return out, *pull(jnp.cos(out))

    ours = gradients(lambda x, a, b, k: convolutions.conv(gated(gated(value_of(x), a), b), k))
    theirs = gradients(lambda x, a, b, k: reference(array_of(x) * a * b, k))
    assert_close(ours, theirs, 1e-5)
