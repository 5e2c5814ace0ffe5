"""The two programs of the training step, lowered for devices that need not be there."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from effnetv2_jax.errors import unknown_name
from effnetv2_jax.models import create_model, get_spec
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.training import mesh as meshes
from effnetv2_jax.training.optimizers import make_optimizer
from effnetv2_jax.training.state import create_state, functional
from effnetv2_jax.training.step import make_train_step

DTYPES = ("bfloat16", "float32")


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
    model: str,
    image_size: int,
    batch_per_core: int,
    optimizer: str,
    dtype: str,
    num_classes: int,
    bn_group_size: int | None,
    remat: str,
    accumulation_steps: int,
    fsdp: int,
    reduce_dtype: str,
    mixing: bool,
) -> dict[str, StepProgram]:
    """Lowers the step without making an array; arguments are ``compile_train_step``'s.

    Returns:
        ``gradients`` and ``update``.

    Raises:
        UsageError: for the first argument that cannot be used.
    """
    for name, value in (("dtype", dtype), ("reduce_dtype", reduce_dtype)):
        if value not in DTYPES:
            raise unknown_name(name, value, DTYPES)
    mesh = meshes.make_mesh(devices, fsdp=fsdp)
    batch_size = batch_per_core * mesh.size
    meshes.check_batch_size("batch_per_core × cores", batch_size, mesh, accumulation_steps)
    family = get_preprocessing(get_spec(model).preprocessing)
    module = nnx.eval_shape(
        lambda: create_model(
            model,
            num_classes=num_classes,
            dtype=jnp.dtype(dtype),
            axis_name=meshes.AXES,
            bn_group_size=bn_group_size,
            remat=remat,
        )
    )
    apply, params, batch_stats = functional(module)
    # The paper's, whose rates change no program.
    transformation = make_optimizer(optimizer, optax.constant_schedule(0.256), weight_decay=1e-5)
    train_step = make_train_step(
        apply,
        transformation,
        mesh=mesh,
        num_classes=num_classes,
        mean=family.mean,
        std=family.std,
        label_smoothing=0.1,
        mixing=mixing,
        dtype=jnp.dtype(dtype),
        reduce_dtype=jnp.dtype(reduce_dtype),
        accumulation_steps=accumulation_steps,
    )
    state = meshes.abstract_state(
        jax.eval_shape(
            lambda params, stats: create_state(params, stats, transformation), params, batch_stats
        ),
        mesh,
    )

    def array(shape: tuple[int, ...], dtype, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    split, copied = meshes.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    batch = {
        "image": array((batch_size, image_size, image_size, 3), jnp.uint8, split),
        "label": array((batch_size,), jnp.int32, split),
        "mask": array((batch_size,), jnp.float32, split),
    }
    scalars = {
        name: array((), jnp.float32, copied)
        for name in ("dropout_rate", "mixup_alpha", "cutmix_alpha")
    }

    def nothing_with(*trees) -> jax.stages.Lowered:
        return jax.jit(lambda *trees: (), keep_unused=True).lower(*trees)

    return {
        "gradients": StepProgram(
            lowered=train_step.gradients.lower(
                state.params, state.batch_stats, state.step, batch, scalars
            ),
            beside=nothing_with(state.opt_state, state.ema_params, state.ema_batch_stats),
            loop_runs=accumulation_steps,
        ),
        "update": StepProgram(
            lowered=train_step.update.lower(
                state, state.params, state.batch_stats, array((), jnp.float32, copied)
            ),
            beside=nothing_with(batch),
        ),
    }
