"""What we ask of XLA beyond its defaults."""

import functools

import jax

OPTIONS = {
    # Reductions by YNNPACK alone. By default, it convolves as well, but on one core: convolutions
    # and their gradients take two to four times as long on two (docs/performance.md).
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"},
}


def compiler_options(platform: str | None = None) -> dict[str, str]:
    """For ``jax.jit(function, compiler_options=…)`` of our networks, and of most others.

    Args:
        platform: for which it compiles, as ``jax.Device.platform``; None for JAX's default.

    Returns:
        XLA's options by their names, without those that the XLA at hand does not know: they are
        experimental. Of accelerators, there are none.
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
