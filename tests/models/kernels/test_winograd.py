"""Winograd's convolutions against XLA's own, and the cases in which they are used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from effnetv2_jax.models.kernels import convolutions, winograd
from tests.models.kernels.against_xla import assert_close, normal, reference, with_gradients


def arguments(height, inputs=32, outputs=48, kernel_size=3, dtype=jnp.float32):
    x = normal(0, 2, height, 5, inputs, dtype=dtype)
    return x, normal(1, kernel_size, kernel_size, inputs, outputs, dtype=dtype)


def convolutions_in(function, platform, *arguments):
    program = export.export(jax.jit(function), platforms=[platform])(*arguments)
    return program.mlir_module().count("stablehlo.convolution")


# One tile and several; the last one has four, three, two or one rows of the result.
@pytest.mark.parametrize("height", [4, 12, 15, 14, 17])
def test_values_and_both_gradients_are_xlas(height):
    x, kernel = arguments(height)
    assert winograd.suits(x, kernel, 1)
    ours = jax.jit(functools.partial(with_gradients, convolutions.conv))(x, kernel)
    assert_close(ours, with_gradients(reference, x, kernel), 1e-5)


def test_an_error_is_some_float32_roundings():
    """Compared with the same sums in float64."""
    x, kernel = arguments(16, inputs=64, outputs=64)
    with jax.enable_x64(True):
        exact = np.asarray(reference(np.float64(x), np.float64(kernel)))
    ours = winograd.conv(x, kernel)
    assert np.abs(ours - exact).max() < 32 * np.finfo(np.float32).eps * np.abs(exact).max()


def test_vmap_of_values_and_gradients():
    x, kernel = arguments(8)
    xs, kernels = jnp.stack([x, x[::-1]]), jnp.stack([kernel, 2 * kernel])
    ours = jax.vmap(functools.partial(with_gradients, convolutions.conv))(xs, kernels)
    for i in range(2):
        expected = with_gradients(reference, xs[i], kernels[i])
        assert_close([values[i] for values in ours], expected, 1e-5)


def test_second_derivatives():
    x, kernel = arguments(8)

    def squares(conv):
        def gradient(x):
            return jax.grad(lambda x: (conv(x, kernel) ** 2).sum())(x)

        return jax.grad(lambda x: (gradient(x) ** 2).sum())(x)

    assert_close([squares(convolutions.conv)], [squares(reference)], 1e-5)


def test_it_is_for_cpu_only():
    both = functools.partial(with_gradients, convolutions.conv)
    found = {p: convolutions_in(both, p, *arguments(16)) for p in ("cpu", "tpu", "cuda")}
    # Six in place of one, forward and for each gradient.
    assert found == {"cpu": 18, "tpu": 3, "cuda": 3}


@pytest.mark.parametrize(
    ("options", "stride"),
    [
        ({"height": 16, "dtype": jnp.bfloat16}, 1),
        ({"height": 16, "kernel_size": 5}, 1),
        ({"height": 16}, 2),
        ({"height": 16, "outputs": 8}, 1),  # few channels: sums take longer than products
        ({"height": 9}, 1),  # twelve rows for nine
        ({"height": 1}, 1),
    ],
    ids=str,
)
def test_other_convolutions_are_xlas(options, stride):
    conv = functools.partial(convolutions.conv, stride=stride)
    assert convolutions_in(conv, "cpu", *arguments(**options)) == 1
