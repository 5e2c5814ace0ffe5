"""The effect of our compiler options on the programs that XLA makes."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from effnetv2_jax.models.kernels import compiler
from effnetv2_jax.models.layers import global_average_pool


def compiled(options):
    x, kernel = jnp.ones((2, 32, 32, 24)), jnp.ones((3, 3, 24, 32))

    def convolution(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    return jax.jit(convolution, compiler_options=options).lower(x, kernel).compile().as_text()


def test_a_convolution_is_not_left_to_the_library_that_takes_one_core():
    assert "ynn" not in compiled(compiler.compiler_options())
    # If this fails, XLA has changed its default, and the option may no longer be needed.
    assert "__ynn_fusion" in compiled({})


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    known = compiler.OPTIONS["cpu"]
    others = {"xla_cpu_no_such_option": "1", **known}
    monkeypatch.setitem(compiler.OPTIONS, "cpu", others)
    assert compiler.compiler_options("cpu") == known
    name = next(iter(known))
    monkeypatch.setitem(compiler.OPTIONS, "cpu", {name: "NO_SUCH_VALUE"})
    assert compiler.compiler_options("cpu") == {}


def test_a_mean_does_not_take_the_products_around_it_to_that_library():
    def head(pool, x, kernel):
        return jax.nn.silu(pool(jax.nn.silu(x @ kernel)) @ kernel)

    x, kernel = jnp.ones((16, 4, 4, 64)), jnp.ones((64, 64))

    def products(pool):
        options = compiler.compiler_options()
        program = jax.jit(functools.partial(head, pool), compiler_options=options)
        _, entry = program.lower(x, kernel).compile().as_text().split("\nENTRY")
        return entry.count(" dot(")

    assert products(global_average_pool) == 2
    # If this fails, the isolated mean may no longer be needed.
    assert products(lambda x: x.mean((1, 2))) < 2


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerators_have_no_options(platform):
    assert compiler.compiler_options(platform) == {}
