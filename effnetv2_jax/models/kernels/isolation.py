"""Functions that XLA compiles separately from the code around them."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
from jax.experimental.xla_metadata import set_xla_metadata

P = ParamSpec("P")
R = TypeVar("R")


def isolated(function: Callable[P, R], static: str | tuple[str, ...] = ()) -> Callable[P, R]:
    """Returns the function as a call that XLA does not inline.

    Its arguments and results lie in memory, and nothing is fused across the call. XLA on CPU fuses
    too much: it repeats the computation of an array in each loop that reads it. The nine taps of a
    convolution would compute the activation before it nine times. ``lax.optimization_barrier`` does
    not help, because XLA on CPU removes it before it fuses.

    Args:
        function: A function of arrays that JAX can trace.
        static: The names of arguments that are hashable and no arrays.
    """

    @functools.wraps(function)
    def body(*args: P.args, **kwargs: P.kwargs) -> R:
        # Calls inside of the function may be inlined.
        with set_xla_metadata(inlineable=None):
            return function(*args, **kwargs)

    jitted = jax.jit(body, static_argnames=static)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with set_xla_metadata(inlineable="false"):
            return jitted(*args, **kwargs)

    return call
