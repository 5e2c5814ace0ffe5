"""A model's training step with all it takes: what the benchmarks time, count and lower."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from effnetv2_jax.models import abstract_model, create_model, get_spec
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime.errors import unknown_name
from effnetv2_jax.training import mesh as meshes
from effnetv2_jax.training.optimizers import make_optimizer
from effnetv2_jax.training.state import TrainState, create_state, functional
from effnetv2_jax.training.step import StageScalars, TrainStep, make_train_step

DTYPES = ("bfloat16", "float32")
SCALARS = ("dropout_rate", "mixup_alpha", "cutmix_alpha")


@dataclasses.dataclass(frozen=True)
class ModelStep:
    """A model's training step on a mesh.

    Attributes:
        mesh: from ``make_mesh``.
        image_size: side in px.
        num_classes: of the labels.
        train_step: of which nothing is compiled yet.
        shapes: of the state.
        make_state: gives the state before the first step, of random weights, on no mesh yet.
    """

    mesh: Mesh
    image_size: int
    num_classes: int
    train_step: TrainStep
    shapes: TrainState
    make_state: Callable[[], TrainState]

    def state(self) -> TrainState:
        """The state before the first step, on the mesh."""
        return meshes.shard_state(self.make_state(), self.mesh)

    def batch(self, batch_size: int) -> meshes.Batch:
        """Noise on the mesh: ``image`` uint8 [batch, size, size, 3], ``label``, ``mask``."""
        rng = np.random.default_rng(0)
        shape = (batch_size, self.image_size, self.image_size, 3)
        batch = {
            "image": rng.integers(0, 256, shape, np.uint8),
            "label": rng.integers(0, self.num_classes, batch_size, np.int32),
            "mask": np.ones(batch_size, np.float32),
        }
        return meshes.shard_batch(batch, self.mesh)

    def compile(self, batch: meshes.Batch) -> list[jax.stages.Compiled]:
        """Compiles what the step consists of for a batch's shapes: gradients, then update."""
        state = meshes.abstract_state(self.shapes, self.mesh)
        gradients = self.train_step.lower_gradients(state, batch, self.scalars())
        return [gradients.compile(), self.train_step.lower_update(state).compile()]

    def scalars(self) -> StageScalars:
        """Of a stage without dropout, Mixup and CutMix; traced, so that others cost the same."""
        return {name: jnp.float32(0) for name in SCALARS}


def make_model_step(
    devices: Sequence[jax.Device],
    *,
    model: str,
    image_size: int,
    optimizer: str,
    dtype: str,
    num_classes: int,
    bn_group_size: int | None = None,
    remat: str = "none",
    scan_blocks: bool = False,
    accumulation_steps: int = 1,
    fsdp: int = 1,
    reduce_dtype: str = "float32",
    mixing: bool = False,
) -> ModelStep:
    """Builds the training step of a model without making an array.

    Args:
        devices: in the order of the batch; they need not be there.
        model: a name of ``list_models()``.
        image_size: side in px; a ViT is made for it, and other networks take any.
        optimizer: a name in ``OPTIMIZERS``.
        dtype: of the computation, ``bfloat16`` or ``float32``.
        num_classes: of the classifier.
        bn_group_size: devices that share batch-norm statistics; None for all.
        remat: ``none``, ``blocks`` or ``stages``, as for ``create_model``.
        scan_blocks: likewise.
        accumulation_steps: parts of a device's batch, worked through one after the other.
        fsdp: neighbouring devices that share one copy of the state.
        reduce_dtype: in which gradients are summed, ``bfloat16`` or ``float32``.
        mixing: with Mixup and CutMix.

    Raises:
        UsageError: for the first argument that cannot be used.
    """
    for name, value in (("dtype", dtype), ("reduce_dtype", reduce_dtype)):
        if value not in DTYPES:
            raise unknown_name(name, value, DTYPES)
    mesh = meshes.make_mesh(devices, fsdp=fsdp)
    family = get_preprocessing(get_spec(model).preprocessing)
    # The paper's, whose rates change no program.
    transformation = make_optimizer(optimizer, optax.constant_schedule(0.256), weight_decay=1e-5)

    arguments: dict[str, Any] = {
        "num_classes": num_classes,
        "dtype": jnp.dtype(dtype),
        "axis_name": meshes.AXES,
        "bn_group_size": bn_group_size,
        "remat": remat,
        "scan_blocks": scan_blocks,
        "eval_size": image_size,
    }

    def make_state() -> TrainState:
        _, params, batch_stats = functional(create_model(model, **arguments))
        return create_state(params, batch_stats, transformation)

    apply, params, batch_stats = functional(abstract_model(model, **arguments))
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
    shapes = jax.eval_shape(
        lambda params, stats: create_state(params, stats, transformation), params, batch_stats
    )
    return ModelStep(mesh, image_size, num_classes, train_step, shapes, make_state)
