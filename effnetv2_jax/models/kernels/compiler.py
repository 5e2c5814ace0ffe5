"""The options that XLA compiles our networks with."""

import functools

import jax

OPTIONS = {
    # YNNPACK computes reductions only. By default it also computes convolutions, but on one core:
    # on two cores, they and their gradients take two to four times as long (docs/performance.md).
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"},
}


def compiler_options(platform: str | None = None) -> dict[str, str]:
    """Returns options for ``jax.jit(function, compiler_options=…)``; most networks gain by them.

    Args:
        platform: The platform to compile for, as in ``jax.Device.platform``. None takes JAX's
            default.

    Returns:
        XLA's options by name. The options are experimental: those that the installed XLA does not
        know are left out. There are none for accelerators.
    """
    platform = platform or jax.default_backend()
    return {
        name: value
        for name, value in OPTIONS.get(platform, {}).items()
        if _is_understood(platform, name, value)
    }


@functools.cache
def _is_understood(platform: str, name: str, value: str) -> bool:
    try:
        with jax.default_device(jax.local_devices(backend=platform)[0]):
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
