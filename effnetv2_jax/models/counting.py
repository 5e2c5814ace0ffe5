"""Counts parameters and multiply-adds of any module, without running it."""

import math
from collections.abc import Callable

import jax
from flax import nnx
from jax.extend import core


def count_parameters(model: nnx.Module) -> int:
    """Returns the number of trainable parameters of a model, which may be abstract."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def count_multiply_adds(function: Callable, *args) -> int:
    """Returns the multiply-adds of ``function(*args)`` in its convolutions and matrix products.

    The paper calls them FLOPs. They are counted from the jaxpr, so that any module works.
    Elementwise work is left out, as is usual.

    >>> import jax.numpy as jnp
    >>> count_multiply_adds(jnp.matmul, jnp.ones((3, 4)), jnp.ones((4, 5)))
    60

    Args:
        function: A function that JAX can trace.
        *args: Its arguments, arrays or ``jax.ShapeDtypeStruct``.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracting, _), _ = params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracting)
        return math.prod(equation.outvars[0].aval.shape) * depth
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_channels = kernel[params["dimension_numbers"].rhs_spec[0]]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // out_channels
    if name == "cond":
        # Only one branch runs. If the branches are lowerings for several platforms, the largest is
        # the convolution.
        return max(_count(branch.jaxpr) for branch in params["branches"])
    times = params["length"] if name == "scan" else 1
    return times * sum(_count(inner) for inner in _inner_jaxprs(params.values()))


def _inner_jaxprs(values):
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inner_jaxprs(value)
