"""The process that compiles for a TPU; ``compile`` starts it.

It is a process of its own because libtpu's environment has to be set before JAX starts, because
errors may end it, and because libtpu's lock is free again when it has ended.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from effnetv2_jax.benchmarks.timing.steps import StepSpec
from effnetv2_jax.benchmarks.tpu.figures import compile_and_measure
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.workers import Tell
from effnetv2_jax.training.mesh import abstract_batch, check_batch_size
from effnetv2_jax.training.step import stage_scalars

TOPOLOGIES = "v2:2x2, v3:2x2, v3:4x4, v4:2x2x1, v4:2x4x4, v5e:4x8, v5p:2x4x4, v6e:4x8"
"""Some topologies that libtpu knows. There are smaller and larger ones of the same kinds."""


@dataclasses.dataclass(frozen=True)
class LoweredProgram:
    """One of the two programs of a training step.

    Attributes:
        program: The program.
        beside: A program that does nothing with what lies in the device's memory meanwhile without
            being an argument. Only the compiler knows how much an array takes there, as it pads.
    """

    program: jax.stages.Lowered
    beside: jax.stages.Lowered


def lower_train_step(
    devices: Sequence[jax.Device], step: StepSpec, *, batch_per_core: int
) -> dict[str, LoweredProgram]:
    """Lowers a training step without making an array.

    Args:
        devices: The devices, which need not be attached.
        step: The step.
        batch_per_core: The number of images per device and step.

    Returns:
        The programs ``gradients`` and ``update``.

    Raises:
        UsageError: For the first argument that cannot be used.
    """
    training = step.build(devices)
    mesh = training.mesh
    batch_size = batch_per_core * mesh.size
    check_batch_size("batch_per_core × cores", batch_size, mesh, step.accumulation_steps)
    state = training.abstract_state()
    batch = abstract_batch(step.image_size, batch_size, (), mesh)

    def nothing_with(*trees) -> jax.stages.Lowered:
        return jax.jit(lambda *trees: (), keep_unused=True).lower(*trees)

    return {
        "gradients": LoweredProgram(
            training.train_step.lower_gradients(state, batch, stage_scalars()),
            nothing_with(state.opt_state, state.ema_params, state.ema_batch_stats),
        ),
        "update": LoweredProgram(training.train_step.lower_update(state), nothing_with(batch)),
    }


def digest_of(programs: Iterable[LoweredProgram]) -> str:
    """Returns a digest of the programs' StableHLO, which holds no places in source files."""
    texts = [lowered.program.as_text(debug_info=False) for lowered in programs]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


class TpuCompiler:
    """Compiles training steps for a TPU that need not be attached.

    Args:
        topology: A name that libtpu knows.
        tell: Is told what goes on, a few words at a time.

    Raises:
        UsageError: If libtpu does not know the topology, or does not start.
    """

    def __init__(self, topology: str, tell: Tell):
        self._tell = tell
        tell("starting libtpu")
        self._devices = _devices(topology)

    def compile(
        self, step: dict[str, Any], batch_per_core: int, known: list[Any]
    ) -> dict[str, Any] | None:
        """Compiles both programs of a step.

        Args:
            step: The fields of a ``StepSpec``.
            batch_per_core: The number of images per core and step.
            known: The digest of programs that need not be compiled again, and the versions that
                compiled them.

        Returns:
            Fields of a ``CompiledStep``. None if the programs and the versions are the known ones.
        """
        versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}
        self._tell("tracing the step")
        programs = lower_train_step(self._devices, StepSpec(**step), batch_per_core=batch_per_core)
        digest = digest_of(programs.values())
        if known == [digest, versions]:
            return None
        figures: dict[str, Mapping[str, Any]] = {}
        for name, lowered in programs.items():
            self._tell(f"compiling the {name}")
            beside = compile_and_measure(lowered.beside).arguments
            found = compile_and_measure(lowered.program)
            figures[name] = dataclasses.replace(found, beside=beside).as_json()
        return {
            "device_kind": self._devices[0].device_kind,
            "cores": len(self._devices),
            "memory_limit": compile_and_measure(_too_large(self._devices)).memory_limit,
            **figures,
            "versions": versions,
            "program": digest,
        }


def _devices(topology: str) -> Sequence[jax.Device]:
    known = f"there are {TOPOLOGIES} and other sizes of these"
    if not topology:  # libtpu would choose one
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


def _too_large(devices: Sequence[jax.Device]) -> jax.stages.Lowered:
    """Lowers a program that fits nowhere. The compiler refuses it, and names the chip's limit."""
    everywhere = NamedSharding(Mesh(np.asarray(devices), ("all",)), PartitionSpec())
    array = jax.ShapeDtypeStruct((1 << 40,), jnp.float32, sharding=everywhere)
    return jax.jit(lambda x: x + 1).lower(array)
