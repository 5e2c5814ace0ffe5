"""XLA's options against what XLA makes of them."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from effnetv2_jax import compiler


def compiled(options):
    x, kernel = jnp.ones((2, 32, 32, 24)), jnp.ones((3, 3, 24, 32))

    def convolution(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    return jax.jit(convolution, compiler_options=options).lower(x, kernel).compile().as_text()


def test_a_convolution_is_not_left_to_the_library_that_takes_one_core():
    assert "ynn" not in compiled(compiler.compiler_options())
    # Where this fails, XLA has changed its default, and the option may have had its day.
    assert "__ynn_fusion" in compiled({})


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    known = compiler.OPTIONS["cpu"]
    others = {"xla_cpu_no_such_option": "1", **known}
    monkeypatch.setitem(compiler.OPTIONS, "cpu", others)
    assert compiler.compiler_options("cpu") == known
    name = next(iter(known))
    monkeypatch.setitem(compiler.OPTIONS, "cpu", {name: "NO_SUCH_VALUE"})
    assert compiler.compiler_options("cpu") == {}


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerators_have_no_options(platform):
    assert compiler.compiler_options(platform) == {}
