"""The two programs of the training step, lowered for devices that need not be there."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from effnetv2_jax.benchmarks.timing.model_step import SCALARS, make_model_step
from effnetv2_jax.training import mesh as meshes


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """One of the two.

    Attributes:
        lowered: the program.
        beside: one that does nothing with what lies in the devices' memory meanwhile without being
            an argument: the compiler alone knows how much an array takes there, since it pads.
        loop_runs: how often the loop runs that is nearly all of the program; 1 without a loop.
    """

    lowered: jax.stages.Lowered
    beside: jax.stages.Lowered
    loop_runs: int = 1


def lower_train_step(
    devices: Sequence[jax.Device],
    *,
    image_size: int,
    batch_per_core: int,
    accumulation_steps: int,
    **options: Any,
) -> dict[str, StepProgram]:
    """Lowers the step without making an array; arguments are ``compile_train_step``'s.

    Returns:
        ``gradients`` and ``update``.

    Raises:
        UsageError: for the first argument that cannot be used.
    """
    step = make_model_step(
        devices, image_size=image_size, accumulation_steps=accumulation_steps, **options
    )
    mesh = step.mesh
    batch_size = batch_per_core * mesh.size
    meshes.check_batch_size("batch_per_core × cores", batch_size, mesh, accumulation_steps)
    state = meshes.abstract_state(step.shapes, mesh)

    def array(shape: tuple[int, ...], dtype, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    split, copied = meshes.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    batch = {
        "image": array((batch_size, image_size, image_size, 3), jnp.uint8, split),
        "label": array((batch_size,), jnp.int32, split),
        "mask": array((batch_size,), jnp.float32, split),
    }
    scalars = {name: array((), jnp.float32, copied) for name in SCALARS}

    def nothing_with(*trees) -> jax.stages.Lowered:
        return jax.jit(lambda *trees: (), keep_unused=True).lower(*trees)

    return {
        "gradients": StepProgram(
            lowered=step.train_step.lower_gradients(state, batch, scalars),
            beside=nothing_with(state.opt_state, state.ema_params, state.ema_batch_stats),
            loop_runs=accumulation_steps,
        ),
        "update": StepProgram(
            lowered=step.train_step.lower_update(state),
            beside=nothing_with(batch),
        ),
    }
