"""The process that compiles for a TPU; ``tpu_compile`` starts it and reads the lines it prints.

A process of its own: what libtpu wants has to be set before JAX starts, errors may end it, and with
it libtpu's lock goes.
"""

import json
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from effnetv2_jax.benchmarks.tpu import figures_cache, step_records
from effnetv2_jax.benchmarks.tpu.figures import ProgramFigures, compile_and_measure
from effnetv2_jax.benchmarks.tpu.programs import lower_train_step
from effnetv2_jax.runtime.errors import UsageError

# What exists, besides smaller and larger ones of the same kinds.
TOPOLOGIES = (
    "v2:2x2",
    "v3:2x2",
    "v3:4x4",
    "v4:2x2x1",
    "v4:2x4x4",
    "v5e:4x8",
    "v5p:2x4x4",
    "v6e:4x8",
)

Say = Callable[[str, Any], None]
"""Tells the waiting process something: a kind and a value that JSON knows."""


def main() -> None:
    threading.Thread(target=_end_with_the_one_who_waits, daemon=True).start()
    # libtpu writes to stdout too: from here on that is stderr, and what we say goes to a copy.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(kind: str, value: Any) -> None:
        print(json.dumps({kind: value}), file=channel)

    try:
        say("result", compile_for_tpu(say=say, **json.loads(sys.argv[1])))
    except UsageError as error:
        say("error", str(error))


def _end_with_the_one_who_waits() -> None:
    # However it ends, its end of this pipe is closed; a compilation would go on for minutes.
    sys.stdin.read()
    os._exit(1)


def compile_for_tpu(
    *, say: Say, topology: str, cache: str | None, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Compiles the programs of the training step.

    Args:
        say: is told the ``phase``, a few words.
        topology: a name libtpu knows.
        cache: folder of figures; None for none.
        arguments: of ``lower_train_step``.

    Returns:
        What ``tpu_compile.combine`` takes, for JSON.
    """
    say("phase", "starting libtpu")
    devices = _devices(topology)
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}
    compiler = (topology, *versions.values(), os.environ.get("LIBTPU_INIT_ARGS", ""))

    def figures_of(lowered: jax.stages.Lowered) -> ProgramFigures:
        return _cached_figures(lowered, compiler, pathlib.Path(cache) if cache else None)

    say("phase", "tracing the step")
    programs = lower_train_step(devices, **arguments)
    figures, beside = {}, {}
    for name, program in programs.items():
        say("phase", f"compiling the {name}")
        figures[name] = figures_of(program.lowered).as_json()
        beside[name] = figures_of(program.beside).arguments
    return {
        "device_kind": devices[0].device_kind,
        "cores": len(devices),
        "versions": versions,
        "memory_limit": figures_of(_too_large(devices)).memory_limit,
        "figures": figures,
        "beside": beside,
        "loop_runs": {name: program.loop_runs for name, program in programs.items()},
        "modules": step_records.loaded_modules(),
    }


def _devices(topology: str) -> Sequence[jax.Device]:
    known = f"there are {', '.join(TOPOLOGIES)} and other sizes of these"
    if not topology:  # for which libtpu has one of its own
        raise UsageError(f"unknown topology {topology!r}: {known}")
    try:
        return topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
    except jax.errors.JaxRuntimeError as error:
        # "INVALID_ARGUMENT: Invalid TPU external name: TPU v9"
        code, _, reason = str(error).partition(": ")
        if code != "INVALID_ARGUMENT":
            raise UsageError(f"libtpu does not start: {reason or code}") from error
        reason = " ".join(reason.split())
        raise UsageError(f"unknown topology {topology!r} (libtpu: {reason}): {known}") from error


def _cached_figures(
    lowered: jax.stages.Lowered, compiler: Sequence[str], folder: pathlib.Path | None
) -> ProgramFigures:
    if folder is None:
        return compile_and_measure(lowered)
    key = figures_cache.key_of(lowered.as_text(), *compiler)
    figures = figures_cache.read(folder, key)
    if figures is None:
        figures = compile_and_measure(lowered)
        figures_cache.write(folder, key, figures)
    return figures


def _too_large(devices: Sequence[jax.Device]) -> jax.stages.Lowered:
    """A program that fits nowhere: the compiler's refusal has the chip's limit, in a second."""
    everywhere = NamedSharding(Mesh(np.asarray(devices), ("all",)), PartitionSpec())
    array = jax.ShapeDtypeStruct((1 << 40,), jnp.float32, sharding=everywhere)
    return jax.jit(lambda x: x + 1).lower(array)


if __name__ == "__main__":
    main()
