"""What XLA is told where programs run a few times at most: less time in compilers, slower code."""

import importlib.metadata

_QUICK = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
# XLA's older way to make loops compiles in half the time. A later XLA does not have it, and ends a
# process that asks for it.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _QUICK.append("--xla_cpu_use_fusion_emitters=false")


def for_devices(count: int) -> str:
    """``XLA_FLAGS`` of a process with so many simulated devices."""
    return " ".join([*_QUICK, f"--xla_force_host_platform_device_count={count}"])
