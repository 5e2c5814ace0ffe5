"""Linear functions with a hand-written transpose, for derivatives of every kind.

``jax.custom_vjp`` replaces the backward pass of a function, but forbids ``jax.jvp`` and all that is
made of it. With ``jax.custom_jvp``, a function's derivative can be a ``linear_call``. Its transpose
is then the hand-written backward pass, and forward mode computes the derivative itself.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

PyTree = Any


def linear_call(
    function: Callable[[PyTree, PyTree], jax.Array],
    transpose: Callable[[PyTree, jax.Array], PyTree],
    residuals: PyTree,
    linear: PyTree,
) -> jax.Array:
    """Returns ``function(residuals, linear)``, a function that is linear in its second argument.

    Unlike ``jax.custom_derivatives.linear_call``, this can be batched, and differentiated again by
    the residuals.

    Args:
        function: The function. JAX differentiates it for derivatives of higher order.
        transpose: Maps the residuals and the gradient by the result to gradients by ``linear``, in
            its structure.
        residuals: Arrays that the backward pass keeps.
        linear: Arrays.
    """
    flat_residuals, residuals_tree = jax.tree.flatten(residuals)
    flat_linear, linear_tree = jax.tree.flatten(linear)
    count = len(flat_residuals)

    def flat_function(*args: jax.Array) -> jax.Array:
        return function(
            jax.tree.unflatten(residuals_tree, args[:count]),
            jax.tree.unflatten(linear_tree, args[count:]),
        )

    def flat_transpose(*args: jax.Array) -> list[jax.Array]:
        *kept, dy = args
        return jax.tree.leaves(transpose(jax.tree.unflatten(residuals_tree, kept), dy))

    return _linear_p.bind(
        *flat_residuals,
        *flat_linear,
        function=flat_function,
        transpose=flat_transpose,
        residuals=count,
    )


_linear_p = Primitive("linear_call")


def _evaluate(*args, function, transpose, residuals):
    return function(*args)


def _abstract(*args, function, transpose, residuals):
    (result,) = jax.make_jaxpr(function)(*args).out_avals
    return result


def _differentiate(primals, tangents, *, function, transpose, residuals):
    return jax.jvp(function, tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))


def _transpose(dy, *args, function, transpose, residuals):
    if isinstance(dy, ad.Zero):
        return [None] * len(args)
    gradients = [None] * residuals + transpose(*args[:residuals], dy)
    asked = [ad.is_undefined_primal(x) for x in args]
    return [gradient if wanted else None for gradient, wanted in zip(gradients, asked, strict=True)]


def _batch(args, axes, *, function, transpose, residuals):
    args = [
        x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(args, axes, strict=True)
    ]
    axes = [None if axis is None else 0 for axis in axes]

    def batched_transpose(*args):
        gradients = jax.vmap(transpose, (*axes[:residuals], 0))(*args)
        return [
            x.sum(0) if axis is None else x
            for x, axis in zip(gradients, axes[residuals:], strict=True)
        ]

    result = _linear_p.bind(
        *args,
        function=jax.vmap(function, axes),
        transpose=batched_transpose,
        residuals=residuals,
    )
    return result, 0


_linear_p.def_impl(_evaluate)
_linear_p.def_abstract_eval(_abstract)
ad.primitive_jvps[_linear_p] = _differentiate
ad.primitive_transposes[_linear_p] = _transpose
batching.primitive_batchers[_linear_p] = _batch
mlir.register_lowering(_linear_p, mlir.lower_fun(_evaluate, multiple_results=False))
