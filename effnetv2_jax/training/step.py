"""The compiled training step: jit(shard_map(…)) over a mesh with axes ``data`` and ``fsdp``.

Readers who look for ``pmap`` or ``pjit``: this is their successor. Every device runs
``local_gradients`` on its share of the batch. Everything that crosses devices is written out
(``psum``, ``pmean``, …); it is the same code on one device and on 32 cores in 4 hosts.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from effnetv2_jax.models.kernels.activations import per_channel
from effnetv2_jax.models.kernels.compiler import compiler_options
from effnetv2_jax.runtime.errors import unknown_name
from effnetv2_jax.training.losses import LOSSES, targets_of
from effnetv2_jax.training.mesh import AXES, Batch, state_shardings, state_specs
from effnetv2_jax.training.mixing import mix
from effnetv2_jax.training.state import Apply, PyTree, TrainState

Metrics = dict[str, jax.Array]
# Numbers that change by stage. They are traced, so that only a new image size compiles.
StageScalars = dict[str, Any]


def stage_scalars(
    dropout_rate: float = 0.0, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0
) -> StageScalars:
    """Returns the fields of a ``Stage`` that the training step takes, float32 scalars by name."""
    return {
        "dropout_rate": np.float32(dropout_rate),
        "mixup_alpha": np.float32(mixup_alpha),
        "cutmix_alpha": np.float32(cutmix_alpha),
    }


def normalize(images: jax.Array, mean, std, dtype=jnp.float32) -> jax.Array:
    """Returns (images − mean) / std per channel, from uint8 [..., 3] to ``dtype``."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    centered = images.astype(jnp.float32) - per_channel(mean, images.ndim)
    return (centered / per_channel(std, images.ndim)).astype(dtype)


def over_devices(collective, tree: PyTree) -> PyTree:
    """Applies ``psum`` or ``pmean`` over all devices; a single device skips the copy by XLA."""
    return collective(tree, AXES) if lax.axis_size(AXES) > 1 else tree


def _gathered(params: PyTree, specs: PyTree) -> PyTree:
    """Returns all of the parameters on every device, from their parts along ``fsdp``."""
    return jax.tree.map(
        lambda x, spec: lax.all_gather(x, "fsdp", axis=len(spec) - 1, tiled=True) if spec else x,
        params,
        specs,
    )


def _summed(gradients: PyTree, specs: PyTree, dtype) -> PyTree:
    """Sums gradients over all devices in a dtype; each device keeps its part along ``fsdp``."""

    def summed(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        part = x.astype(dtype)
        if spec:
            part = lax.psum_scatter(part, "fsdp", scatter_dimension=len(spec) - 1, tiled=True)
            return lax.psum(part, "data").astype(x.dtype)
        return lax.psum(part, AXES).astype(x.dtype)

    return jax.tree.map(summed, gradients, specs) if lax.axis_size(AXES) > 1 else gradients


_SMALL = 1 << 14
"""Arrays smaller than this are concatenated, so that each does not become a kernel of its own."""


def _all_finite(tree: PyTree) -> jax.Array:
    """Returns 1.0 if all numbers on all devices along ``fsdp`` are finite, otherwise 0.0."""
    leaves = [x.reshape(-1) for x in jax.tree.leaves(tree)]
    # At least the loss is small.
    small = jnp.concatenate([x for x in leaves if x.size < _SMALL])
    large = [x for x in leaves if x.size >= _SMALL]
    # 0 · x is 0 if x is finite. This is one sum, while isfinite would write an array of its own.
    finite = jnp.isfinite(sum((0 * x).sum() for x in [small, *large])).astype(jnp.float32)
    return lax.pmin(finite, "fsdp") if lax.axis_size("fsdp") > 1 else finite


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """``train_step(state, batch, scalars) -> (state, metrics)``; the state is donated.

    If the loss, a gradient or a statistic is not finite, the state stays as it is except for its
    step, which is the position in the stream of examples.

    The batch has ``image`` uint8 [batch, height, width, 3], ``label`` as for ``losses.targets_of``
    and ``mask`` float32 [batch], all sharded along the first axis. It may have ``index`` int32
    [batch], the number of each example in the whole batch of all devices and processes; by default
    that is the example's position. It may have ``wishes`` float32 [devices, wishes], whose sum over
    the devices becomes one of the metrics.

    The scalars are those of ``stage_scalars``.

    The metrics are float32 sums over the batch: ``loss``, ``correct`` and ``count``; and
    ``finite``, which is 0 if the state stayed as it was.

    Attributes:
        gradients: The function (params, batch_stats, step, batch, scalars) → (gradients,
            batch_stats, metrics). It is jitted, and compiles once per image size, or it is already
            compiled for one.
        update: The function (state, gradients, batch_stats, finite) → state, which donates the old
            state. It does not depend on images and compiles once per run.
    """

    gradients: Any
    update: Any

    def __call__(
        self, state: TrainState, batch: Batch, scalars: StageScalars
    ) -> tuple[TrainState, Metrics]:
        gradients, batch_stats, metrics = self.gradients(
            state.params, state.batch_stats, state.step, batch, scalars
        )
        return self.update(state, gradients, batch_stats, metrics["finite"]), metrics

    def lower_gradients(
        self, state: TrainState, batch: Batch, scalars: StageScalars
    ) -> jax.stages.Lowered:
        """Lowers ``gradients`` for arrays or for ``jax.ShapeDtypeStruct`` with shardings."""
        return self.gradients.lower(state.params, state.batch_stats, state.step, batch, scalars)

    def lower_update(self, state: TrainState) -> jax.stages.Lowered:
        """Lowers ``update``; gradients have the shapes of the parameters."""
        finite = jax.ShapeDtypeStruct((), jnp.float32, sharding=state.step.sharding)
        return self.update.lower(state, state.params, state.batch_stats, finite)


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
    class_weights: Sequence[float] | None = None,
    ema_decay: float = 0.9999,
    mixing: bool = False,
    seed: int = 0,
    dtype=jnp.float32,
    reduce_dtype=jnp.float32,
    accumulation_steps: int = 1,
) -> TrainStep:
    """Builds the training step.

    Args:
        apply: The model as a pure function, from ``state.functional``. Its batch norm should
            average over ``AXES``.
        optimizer: The optimizer.
        mesh: The mesh from ``make_mesh``.
        num_classes: The number of classes.
        mean: The mean of the input family, per channel.
        std: The standard deviation of the input family, per channel.
        loss: A name in ``LOSSES``.
        label_smoothing: The label smoothing of the loss, in 0 … 1.
        class_weights: One factor per class. The loss of an example is multiplied by that of its
            class; if it is mixed or has several labels, by the mean of theirs, weighted as in the
            targets. The sum is still divided by the number of examples. None means 1 for all.
        ema_decay: The decay of the moving averages of parameters and batch statistics. At a step
            it is min(ema_decay, (1 + step) / (10 + step)).
        mixing: Compiles Mixup and CutMix into the step. False saves their time if no stage mixes.
        seed: The seed of the run. What is drawn for an example is a function of the seed, the step
            and the example's ``index``.
        dtype: The dtype of the images given to ``apply``.
        reduce_dtype: The dtype in which gradients are summed over devices: float32, or bfloat16
            for half the bytes.
        accumulation_steps: The number of parts in which a device works through its share of the
            batch, one after the other, if the share does not fit at once. Batch norm and mixing see
            one part at a time; the gradient is that of the whole batch. Mixing pairs the same
            examples if the size of a part is even.

    Raises:
        UsageError: For an unknown loss.
    """
    if loss not in LOSSES:
        raise unknown_name("loss", loss, LOSSES)
    loss_function = LOSSES[loss]

    def part_gradients(
        params: PyTree, batch_stats: PyTree, batch: Batch, scalars: StageScalars, key, count
    ) -> tuple[PyTree, PyTree, Metrics]:
        """Returns the gradient's term, batch_stats and sums of a part of this device's share."""
        mix_key, model_key = jax.random.split(key)
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
                batch["index"],
            )

        def mean_loss(params):
            logits, new_batch_stats = apply(
                params,
                batch_stats,
                images,
                train=True,
                key=model_key,
                dropout_rate=scalars["dropout_rate"],
                index=batch["index"],
            )
            losses = loss_function(logits, targets, label_smoothing) * batch["mask"]
            if class_weights is not None:
                losses *= (targets * jnp.asarray(class_weights, jnp.float32)).sum(axis=-1)
            # This part's term of the mean over all. Dividing here saves a pass over the gradients.
            return losses.sum() / count, (logits, new_batch_stats)

        gradient = jax.value_and_grad(mean_loss, has_aux=True)
        (loss_value, (logits, new_batch_stats)), gradients = gradient(params)
        # If an example has several labels, any of them is right.
        best = jnp.take_along_axis(targets, logits.argmax(-1)[:, None], axis=-1)[:, 0]
        correct = (best == targets.max(axis=-1)) * batch["mask"]
        return gradients, new_batch_stats, {"loss": loss_value * count, "correct": correct.sum()}

    def accumulated_gradients(params, batch_stats, batch, scalars, key, count):
        """Returns the gradient's term, batch_stats and sums of the whole share."""
        parts = {name: x.reshape(accumulation_steps, -1, *x.shape[1:]) for name, x in batch.items()}

        def add(carry, part):
            total, batch_stats, sums = carry
            gradients, batch_stats, new_sums = part_gradients(
                params, batch_stats, part, scalars, key, count
            )
            add_trees = functools.partial(jax.tree.map, jnp.add)
            return (add_trees(total, gradients), batch_stats, add_trees(sums, new_sums)), None

        zero = jnp.zeros((), jnp.float32)
        start = (jax.tree.map(jnp.zeros_like, params), batch_stats, {"loss": zero, "correct": zero})
        return lax.scan(add, start, parts)[0]

    def local_gradients(specs, params, batch_stats, step, batch: Batch, scalars: StageScalars):
        key = jax.random.fold_in(jax.random.key(seed), step)
        share = len(batch["mask"])
        places = lax.axis_index(AXES) * share + jnp.arange(share, dtype=jnp.int32)
        examples = {"index": places} | batch
        examples.pop("wishes", None)
        count = over_devices(lax.psum, examples["mask"].sum())
        share_gradients = part_gradients if accumulation_steps == 1 else accumulated_gradients
        gradients, new_batch_stats, sums = share_gradients(
            _gathered(params, specs), batch_stats, examples, scalars, key, count
        )
        # Groups of devices that share statistics have different ones. They are divided before the
        # sum, in the loops that move them; afterwards each would need a loop of its own.
        shares = jax.tree.map(lambda x: x / lax.axis_size(AXES), new_batch_stats)
        new_batch_stats = over_devices(lax.psum, shares)
        if "wishes" in batch:
            sums["wishes"] = batch["wishes"].sum(axis=0)
        sums = over_devices(lax.psum, sums)
        gradients = _summed(gradients, specs, reduce_dtype)
        finite = _all_finite((gradients, new_batch_stats, sums["loss"]))
        return gradients, new_batch_stats, sums | {"count": count, "finite": finite}

    def compute_gradients(params, batch_stats, step, batch, scalars):
        specs, copied = state_specs(params, mesh), PartitionSpec()
        return jax.shard_map(
            functools.partial(local_gradients, specs),
            mesh=mesh,
            in_specs=(specs, copied, copied, PartitionSpec(AXES), copied),
            out_specs=(specs, copied, copied),
            # All collectives are written out above; JAX must not add any.
            check_vma=False,
        )(params, batch_stats, step, batch, scalars)

    update = functools.partial(_update, optimizer, ema_decay, mesh)
    options = compiler_options(mesh.devices.flat[0].platform)
    return TrainStep(
        jax.jit(compute_gradients, compiler_options=options),
        jax.jit(update, donate_argnums=0, compiler_options=options),
    )


def _update(
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    mesh: Mesh,
    state: TrainState,
    gradients: PyTree,
    batch_stats: PyTree,
    finite: jax.Array,
) -> TrainState:
    def updated(taken: jax.Array | bool) -> TrainState:
        """Returns the state after the step; if ``taken`` is False, only its step changes."""
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        # Select the update and not the sum: XLA then makes one loop of a parameter's update.
        updates = jax.tree.map(lambda update: jnp.where(taken, update, 0.0), updates)
        params = optax.apply_updates(state.params, updates)
        opt_state, new_stats = jax.tree.map(
            lambda new, old: jnp.where(taken, new, old),
            (opt_state, batch_stats),
            (state.opt_state, state.batch_stats),
        )
        step = state.step + 1
        # The warm-up of tf.train.ExponentialMovingAverage: the average follows closely at first.
        decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
        ema_params, ema_batch_stats = optax.incremental_update(
            (params, new_stats),
            (state.ema_params, state.ema_batch_stats),
            jnp.where(taken, 1.0 - decay, 0.0),
        )
        return TrainState(step, params, new_stats, opt_state, ema_params, ema_batch_stats)

    def updated_or_left() -> TrainState:
        left = dataclasses.replace(state, step=state.step + 1)
        return lax.cond(finite > 0, lambda: updated(True), lambda: left)

    # With a branch, XLA overwrites the old state on a CPU but copies it on a TPU.
    state = lax.platform_dependent(cpu=updated_or_left, default=lambda: updated(finite > 0))
    # The update is elementwise, so that every device updates only its part of the state.
    return lax.with_sharding_constraint(state, state_shardings(state, mesh))
