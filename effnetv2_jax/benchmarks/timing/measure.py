"""Timing done right, and what has to be printed beside a time: device, dtype, versions, peak.

Needs JAX alone, so that it runs on a bare accelerator machine.
"""

import dataclasses
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from effnetv2_jax.runtime.errors import UsageError

WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of some runs of one thing, in order; at least one."""

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


def time_once(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until all that ``run`` returns is there, and what it returns."""
    started = time.perf_counter()
    result = jax.block_until_ready(run())
    return time.perf_counter() - started, result


def time_runs(run: Callable[[], Any], *, repeats: int, warm_up: int = WARM_UP) -> Timing:
    """Times one thing.

    Args:
        run: does it once; what it returns is waited for.
        repeats: runs that count.
        warm_up: runs before them.
    """
    return interleave({"": run}, repeats=repeats, warm_up=warm_up)[""]


def interleave(
    runs: Mapping[str, Callable[[], Any]], *, repeats: int, warm_up: int = WARM_UP
) -> dict[str, Timing]:
    """Times several things in turn, so that all of them meet the same weather.

    On a shared machine only ratios of such times count.

    Args:
        runs: by name; each does its thing once.
        repeats: runs of each that count.
        warm_up: runs of each before them.
    """
    for _ in range(warm_up):
        for run in runs.values():
            time_once(run)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _, name in turns(runs, repeats):
        seconds[name].append(time_once(runs[name])[0])
    return {name: Timing(tuple(seconds[name])) for name in runs}


def turns(names: Iterable[str], repeats: int) -> Iterator[tuple[int, str]]:
    """Who is next: ``repeats`` rounds of all names, in which none is always first.

    Yields:
        (round, name).
    """
    names = list(names)
    for number in range(repeats):
        for name in names if number % 2 else reversed(names):
            yield number, name


def local_devices() -> list[jax.Device]:
    """The devices that are there, all of one kind; at least one.

    Raises:
        UsageError: where JAX finds none of the kind that it is told to use.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = (str(error).splitlines() or ["no such platform"])[0]
        raise UsageError(f"JAX finds no device with JAX_PLATFORMS={asked!r}: {reason}") from error


def environment() -> dict[str, str]:
    """What every published time needs beside it: device, threads, versions."""
    device = local_devices()[0]
    facts = {
        "device": f"{jax.device_count()} × {device_name(device)}",
        "threads": str(len(os.sched_getaffinity(0))) if device.platform == "cpu" else "",
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax")},
    }
    return {name: value for name, value in facts.items() if value}


def device_name(device: jax.Device) -> str:
    """The kind of a device; of a CPU, its vendor's name where Linux tells it."""
    if device.platform != "cpu":
        return device.device_kind
    try:
        with open("/proc/cpuinfo") as file:
            names = {line.partition(":")[2].strip() for line in file if "model name" in line}
    except OSError:
        names = set()
    return f"CPU ({', '.join(sorted(names)) or platform.machine()})"


# FLOP/s of one JAX device at matrix products in bfloat16 (float16 on V100), as its maker says. A
# device is a core for v2 and v3, and a chip, or a card, for the others.
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
    """FLOP/s of a device at bfloat16 matrix products; None for one that is not in our table."""
    # The longest name that it begins with: "TPU v5 lite" is no "TPU v5".
    names = [name for name in _PEAKS if device_kind.startswith(name)]
    return _PEAKS[max(names, key=len)] if names else None


@functools.cache
def measured_peak_flops(dtype: str = "float32", side: int = 2048, repeats: int = 7) -> float:
    """FLOP/s that a square matrix product reaches on the first device, the fastest of some.

    What stands in for a maker's figure where there is none, as on a CPU.
    """
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal((side, side)), jnp.dtype(dtype)) for _ in range(2))
    product = jax.jit(jnp.matmul)
    return 2 * side**3 / time_runs(lambda: product(a, b), repeats=repeats).low
