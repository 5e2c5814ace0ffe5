"""Functions that XLA compiles as computations of their own."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
from jax.experimental.xla_metadata import set_xla_metadata

P = ParamSpec("P")
R = TypeVar("R")


def isolated(function: Callable[P, R], static: str | tuple[str, ...] = ()) -> Callable[P, R]:
    """The function as a call that XLA does not inline.

    What goes in and comes out lies in memory, and nothing is fused across. XLA on CPU fuses too
    much: whatever one array is computed from goes into each of the loops that read it, so that the
    nine taps of a convolution would compute the activation before it nine times
    (``lax.optimization_barrier`` is gone before XLA on CPU fuses).

    Args:
        function: of arrays, traceable.
        static: names of arguments that are not arrays, and hashable.
    """

    @functools.wraps(function)
    def body(*args: P.args, **kwargs: P.kwargs) -> R:
        # What the function calls itself may be inlined.
        with set_xla_metadata(inlineable=None):
            return function(*args, **kwargs)

    jitted = jax.jit(body, static_argnames=static)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with set_xla_metadata(inlineable="false"):
            return jitted(*args, **kwargs)

    return call
