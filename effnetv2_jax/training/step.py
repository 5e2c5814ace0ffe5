"""The compiled training step: jit(shard_map(…)) over a mesh with a ``data`` axis.

Readers who look for ``pmap`` or ``pjit``: this is what they became. Every device runs
``local_gradients`` on its share of the batch, and what crosses devices is written out (``psum``,
``pmean``), the same on one device and on 32 cores in 4 hosts.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from effnetv2_jax.errors import UsageError
from effnetv2_jax.training.losses import LOSSES, targets_of
from effnetv2_jax.training.mixing import mix
from effnetv2_jax.training.state import Apply, PyTree, TrainState

AXIS = "data"

Batch = dict[str, Any]
Metrics = dict[str, jax.Array]
# Numbers that change by stage; traced, so that only a new image size compiles.
StageScalars = dict[str, Any]


def make_mesh(devices=None) -> Mesh:
    """A mesh of all devices (or those given) along ``data``."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def check_batch_size(name: str, batch_size: int, mesh: Mesh) -> None:
    """Raises UsageError unless the mesh's devices divide the batch."""
    if batch_size < 1 or batch_size % mesh.size:
        raise UsageError(
            f"{name} must be a multiple of the number of devices ({mesh.size}), got {batch_size}"
        )


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Puts this process's part of a batch on its devices, split along the first axis."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def abstract(tree: PyTree) -> PyTree:
    """Shapes, dtypes and shardings of arrays, which outlive a donation."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def replicate(tree, mesh: Mesh):
    """Puts a copy of every array on all devices of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def normalize(images: jax.Array, mean, std, dtype=jnp.float32) -> jax.Array:
    """(images − mean) / std per channel; uint8 [..., 3] to ``dtype``."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return ((images.astype(jnp.float32) - mean) / std).astype(dtype)


def over_devices(collective, tree: PyTree) -> PyTree:
    """``psum`` or ``pmean`` over ``AXIS``; one device is spared the copy that XLA would make."""
    return collective(tree, AXIS) if lax.axis_size(AXIS) > 1 else tree


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """``train_step(state, batch, scalars) -> (state, metrics)``; the state is donated.

    batch: ``image`` uint8 [batch, height, width, 3], ``label`` as for ``losses.targets_of``,
    ``mask`` float32 [batch], sharded along the first axis. scalars: ``dropout_rate``,
    ``mixup_alpha``, ``cutmix_alpha``. metrics: float32 sums over the batch ``loss`` and
    ``correct``, and ``count``.

    Attributes:
        gradients: jitted, of (params, batch_stats, step, batch, scalars) → (gradients, batch_stats,
            metrics); compiles once per image size.
        update: jitted, of (state, gradients, batch_stats) → state, the old one donated; knows
            nothing of images and compiles once per run.
    """

    gradients: jax.stages.Wrapped
    update: jax.stages.Wrapped

    def __call__(
        self, state: TrainState, batch: Batch, scalars: StageScalars
    ) -> tuple[TrainState, Metrics]:
        gradients, batch_stats, metrics = self.gradients(
            state.params, state.batch_stats, state.step, batch, scalars
        )
        return self.update(state, gradients, batch_stats), metrics

    def compile_gradients(self, state: TrainState, batch: Batch, scalars: StageScalars) -> None:
        """Compiles ahead for a batch's shapes; jit finds the program when they arrive.

        Args:
            state: arrays, or their ``jax.ShapeDtypeStruct`` with sharding.
            batch: likewise.
            scalars: as at the call.
        """
        self.gradients.lower(state.params, state.batch_stats, state.step, batch, scalars).compile()

    def compile_update(self, state: TrainState) -> None:
        """Likewise, for every image size; gradients are what the parameters are."""
        self.update.lower(state, state.params, state.batch_stats).compile()


def make_train_step(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    num_classes: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    loss: str = "softmax",
    label_smoothing: float = 0.0,
    ema_decay: float = 0.9999,
    mixing: bool = False,
    seed: int = 0,
    dtype=jnp.float32,
) -> TrainStep:
    """Builds the training step.

    Args:
        apply: from ``state.functional``; its batch norm should average over ``AXIS``.
        optimizer: an optax transformation.
        mesh: from ``make_mesh``.
        num_classes: of the labels.
        mean: of the input family.
        std: of the input family.
        loss: a name in ``LOSSES``.
        label_smoothing: of the loss.
        ema_decay: of parameters and batch statistics, min(ema_decay, (1 + step) / (10 + step)).
        mixing: compiles Mixup and CutMix in; False saves them where no stage mixes.
        seed: all randomness is a function of it, the step and the device.
        dtype: of the images given to ``apply``.
    """
    loss_function = LOSSES[loss]

    def local_gradients(params, batch_stats, step, batch: Batch, scalars: StageScalars):
        key = jax.random.fold_in(jax.random.key(seed), step)
        mix_key, model_key = jax.random.split(jax.random.fold_in(key, lax.axis_index(AXIS)))
        images = normalize(batch["image"], mean, std, dtype)
        targets = targets_of(batch["label"], num_classes)
        if mixing:
            images, targets = mix(
                images,
                targets,
                scalars["mixup_alpha"],
                scalars["cutmix_alpha"],
                mix_key,
                batch["mask"],
            )
        count = over_devices(lax.psum, batch["mask"].sum())

        def mean_loss(params):
            logits, new_batch_stats = apply(
                params,
                batch_stats,
                images,
                train=True,
                key=model_key,
                dropout_rate=scalars["dropout_rate"],
            )
            losses = loss_function(logits, targets, label_smoothing) * batch["mask"]
            # This device's part of the mean over all: dividing here spares the gradients a pass.
            return losses.sum() / count, (logits, new_batch_stats)

        gradient = jax.value_and_grad(mean_loss, has_aux=True)
        (loss_value, (logits, new_batch_stats)), gradients = gradient(params)
        # Of several labels, any will do.
        best = jnp.take_along_axis(targets, logits.argmax(-1)[:, None], axis=-1)[:, 0]
        correct = (best == targets.max(axis=-1)) * batch["mask"]
        sums = {"loss": loss_value * count, "correct": correct.sum()}
        gradients, sums = over_devices(lax.psum, (gradients, sums))
        # Without synchronised batch norm every device has statistics of its own.
        new_batch_stats = over_devices(lax.pmean, new_batch_stats)
        return gradients, new_batch_stats, sums | {"count": count}

    compute_gradients = jax.jit(
        jax.shard_map(
            local_gradients,
            mesh=mesh,
            in_specs=(*[PartitionSpec()] * 3, PartitionSpec(AXIS), PartitionSpec()),
            out_specs=PartitionSpec(),
            # Collectives are written out above, none is to be added for us.
            check_vma=False,
        )
    )
    update = jax.jit(functools.partial(_update, optimizer, ema_decay), donate_argnums=0)
    return TrainStep(compute_gradients, update)


def _update(
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    state: TrainState,
    gradients: PyTree,
    batch_stats: PyTree,
) -> TrainState:
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    # Warm-up of tf.train.ExponentialMovingAverage: the average follows closely at first.
    decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
    ema_params, ema_batch_stats = optax.incremental_update(
        (params, batch_stats), (state.ema_params, state.ema_batch_stats), 1.0 - decay
    )
    return TrainState(step, params, batch_stats, opt_state, ema_params, ema_batch_stats)
