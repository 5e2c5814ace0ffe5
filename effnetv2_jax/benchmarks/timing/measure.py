"""Times, and the facts to print beside a time: device, versions, peak.

Needs only JAX, so that it runs on a bare accelerator machine.
"""

import dataclasses
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from effnetv2_jax.runtime.errors import UsageError

WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class Timing:
    """The seconds of some runs of one thing, in order; at least one."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def low(self) -> float:
        return min(self.seconds)

    @property
    def high(self) -> float:
        return max(self.seconds)

    def __str__(self) -> str:
        return (
            f"{1e3 * self.median:.4g} ms (median of {len(self.seconds)}, "
            f"{1e3 * self.low:.4g} to {1e3 * self.high:.4g})"
        )


def time_runs(run: Callable[[], Any], *, repeats: int) -> Timing:
    """Times one thing, after WARM_UP runs that do not count.

    Args:
        run: Does it once. The arrays that it returns are waited for.
        repeats: The number of runs that are timed.
    """
    seconds = []
    for _ in range(WARM_UP + repeats):
        started = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - started)
    return Timing(tuple(seconds[WARM_UP:]))


def turns(names: Iterable[str], repeats: int) -> Iterator[tuple[int, str]]:
    """Yields rounds of all names, in an order in which none is always first.

    Things that take turns meet the same conditions. On a shared machine only ratios of such times
    count.

    Args:
        names: The names.
        repeats: The number of rounds.

    Yields:
        The number of the round, and a name.
    """
    names = list(names)
    for number in range(repeats):
        for name in names if number % 2 else reversed(names):
            yield number, name


def local_devices() -> list[jax.Device]:
    """Returns the devices of this machine, which are of one kind; at least one.

    Raises:
        UsageError: If JAX finds none of the kind that it is told to use.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = (str(error).splitlines() or ["no such platform"])[0]
        raise UsageError(f"JAX finds no device with JAX_PLATFORMS={asked!r}: {reason}") from error


def environment() -> dict[str, str]:
    """Returns what every published time needs beside it: device, threads, versions."""
    device = local_devices()[0]
    threads = {"threads": str(len(os.sched_getaffinity(0)))} if device.platform == "cpu" else {}
    return {
        "device": f"{jax.device_count()} × {device_name(device)}",
        **threads,
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax")},
    }


def environment_text() -> str:
    """Returns ``environment`` in one line."""
    return ", ".join(f"{name} {value}" for name, value in environment().items())


def device_name(device: jax.Device) -> str:
    """Returns the kind of a device. For a CPU, it has the vendor's name if Linux tells it."""
    if device.platform != "cpu":
        return device.device_kind
    try:
        with open("/proc/cpuinfo") as file:
            names = {line.partition(":")[2].strip() for line in file if "model name" in line}
    except OSError:
        names = set()
    return f"CPU ({', '.join(sorted(names)) or platform.machine()})"


# The FLOP/s of one JAX device at matrix products in bfloat16 (float16 on V100), as its maker says.
# A device is a core for TPU v2 and v3, and a chip or a card for the others.
_PEAKS: dict[str, float] = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "Tesla V100": 125e12,
    "Tesla T4": 65e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns a device's FLOP/s at bfloat16 matrix products, or None if we do not know them."""
    # The longest name counts: a "TPU v5 lite" is not a "TPU v5".
    names = [name for name in _PEAKS if device_kind.startswith(name)]
    return _PEAKS[max(names, key=len)] if names else None


@functools.cache
def measured_peak_flops() -> float:
    """Returns the FLOP/s that a float32 matrix product reaches on the first device, at its fastest.

    It stands in for the maker's figure if there is none, as for a CPU.
    """
    side = 2048
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal((side, side)), jnp.float32) for _ in range(2))
    product = jax.jit(jnp.matmul)
    return 2 * side**3 / time_runs(lambda: product(a, b), repeats=7).low
