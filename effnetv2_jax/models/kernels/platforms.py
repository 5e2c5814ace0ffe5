"""The choice between implementations by the platform that a program is lowered for."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

from jax import lax

_neutral = contextvars.ContextVar("neutral", default=False)


def by_platform(*args: Any, default: Callable[..., Any], **platforms: Callable[..., Any]) -> Any:
    """Returns ``lax.platform_dependent`` of the arguments, or ``default`` in ``neutral_platform``.

    Args:
        *args: Arguments of all the functions, pytrees of arrays.
        default: The function for all platforms that have none of their own.
        **platforms: The function for a platform, such as ``cpu`` or ``tpu``.
    """
    if is_neutral():
        return default(*args)
    return lax.platform_dependent(*args, default=default, **platforms)


def is_neutral() -> bool:
    """Returns True within ``neutral_platform``."""
    return _neutral.get()


@contextlib.contextmanager
def neutral_platform() -> Iterator[None]:
    """Traces programs that are the same for every platform, as other people's formats need them.

    Within the block, every operation takes its default implementation: plain convolutions and
    activations, which converters know. On CPU, XLA runs them more slowly than ours.

    JAX keeps what it has traced: a function that was jitted and called before the block stays as it
    was. Trace a new one.
    """
    token = _neutral.set(True)
    try:
        yield
    finally:
        _neutral.reset(token)
