"""The compiled training step: jit(shard_map(…)) over a mesh with axes ``data`` and ``fsdp``.

Readers who look for ``pmap`` or ``pjit``: this is what they became. Every device runs
``local_gradients`` on its share of the batch, and what crosses devices is written out (``psum``,
``pmean``, …), the same on one device and on 32 cores in 4 hosts.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from effnetv2_jax.models.kernels.compiler import compiler_options
from effnetv2_jax.training.losses import LOSSES, targets_of
from effnetv2_jax.training.mesh import AXES, Batch, state_shardings, state_specs
from effnetv2_jax.training.mixing import mix
from effnetv2_jax.training.state import Apply, PyTree, TrainState

Metrics = dict[str, jax.Array]
# Numbers that change by stage; traced, so that only a new image size compiles.
StageScalars = dict[str, Any]


def normalize(images: jax.Array, mean, std, dtype=jnp.float32) -> jax.Array:
    """(images − mean) / std per channel; uint8 [..., 3] to ``dtype``."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return ((images.astype(jnp.float32) - mean) / std).astype(dtype)


def over_devices(collective, tree: PyTree) -> PyTree:
    """``psum`` or ``pmean`` over all devices; a single one is spared the copy XLA would make."""
    return collective(tree, AXES) if lax.axis_size(AXES) > 1 else tree


def _places(share: int) -> jax.Array:
    """Where a device's share of so many examples lies in the whole batch; int32 [share]."""
    return lax.axis_index(AXES) * share + jnp.arange(share, dtype=jnp.int32)


def _gathered(params: PyTree, specs: PyTree) -> PyTree:
    """All of the parameters on every device, from their parts along ``fsdp``."""
    return jax.tree.map(
        lambda x, spec: lax.all_gather(x, "fsdp", axis=len(spec) - 1, tiled=True) if spec else x,
        params,
        specs,
    )


def _summed(gradients: PyTree, specs: PyTree, dtype) -> PyTree:
    """Gradients summed over all devices, of which each keeps its part along ``fsdp``.

    Args:
        gradients: float32, this device's.
        specs: of the parameters.
        dtype: in which they travel and are added up.
    """

    def summed(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        part = x.astype(dtype)
        if spec:
            part = lax.psum_scatter(part, "fsdp", scatter_dimension=len(spec) - 1, tiled=True)
            return lax.psum(part, "data").astype(x.dtype)
        return lax.psum(part, AXES).astype(x.dtype)

    return jax.tree.map(summed, gradients, specs) if lax.axis_size(AXES) > 1 else gradients


_SMALL = 1 << 14
"""Numbers of an array, of which a program had better not make a kernel of its own."""


def _all_finite(tree: PyTree) -> jax.Array:
    """1.0 where all numbers are finite, on all devices; otherwise 0.0.

    Args:
        tree: arrays of which devices have the same or, along ``fsdp``, their parts.
    """
    leaves = [x.reshape(-1) for x in jax.tree.leaves(tree)]
    # Hundreds, as one; the loss at least is one of them.
    small = jnp.concatenate([x for x in leaves if x.size < _SMALL])
    large = [x for x in leaves if x.size >= _SMALL]
    # 0 · x is 0 for all that is finite: one sum where isfinite would write an array of its own.
    finite = jnp.isfinite(sum((0 * x).sum() for x in [small, *large])).astype(jnp.float32)
    return lax.pmin(finite, "fsdp") if lax.axis_size("fsdp") > 1 else finite


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """``train_step(state, batch, scalars) -> (state, metrics)``; the state is donated.

    A loss, gradient or statistic that is not finite leaves the state as it is, but for its step:
    that is the place in the stream of examples.

    batch: ``image`` uint8 [batch, height, width, 3], ``label`` as for ``losses.targets_of``,
    ``mask`` float32 [batch], sharded along the first axis. It may have ``index`` int32 [batch], the
    number of each example in the whole batch of all devices and processes; without it, that is
    where the example lies. Where ``wishes`` float32 [devices, wishes] is with them, the metrics
    have its sum over the devices. scalars: ``dropout_rate``, ``mixup_alpha``, ``cutmix_alpha``.
    metrics: float32 sums over the batch ``loss`` and ``correct``, ``count``, and ``finite``, 0
    where the state was left as it is.

    Attributes:
        gradients: jitted, of (params, batch_stats, step, batch, scalars) → (gradients, batch_stats,
            metrics); compiles once per image size.
        update: jitted, of (state, gradients, batch_stats, finite) → state, the old one donated;
            knows nothing of images and compiles once per run.
        compiler_options: of both.
    """

    gradients: jax.stages.Wrapped
    update: jax.stages.Wrapped
    compiler_options: dict[str, str]

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
        """The program that takes gradients, for a batch's shapes.

        Args:
            state: arrays, or their ``jax.ShapeDtypeStruct`` with sharding.
            batch: likewise.
            scalars: likewise.
        """
        return self.gradients.lower(state.params, state.batch_stats, state.step, batch, scalars)

    def lower_update(self, state: TrainState) -> jax.stages.Lowered:
        """The update, for every image size; gradients are what the parameters are."""
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
    ema_decay: float = 0.9999,
    mixing: bool = False,
    seed: int = 0,
    dtype=jnp.float32,
    reduce_dtype=jnp.float32,
    accumulation_steps: int = 1,
) -> TrainStep:
    """Builds the training step.

    Args:
        apply: from ``state.functional``; its batch norm should average over ``AXES``.
        optimizer: an optax transformation.
        mesh: from ``make_mesh``.
        num_classes: of the labels.
        mean: of the input family.
        std: of the input family.
        loss: a name in ``LOSSES``.
        label_smoothing: of the loss.
        ema_decay: of parameters and batch statistics, min(ema_decay, (1 + step) / (10 + step)).
        mixing: compiles Mixup and CutMix in; False saves them where no stage mixes.
        seed: what is drawn for an example is a function of it, the step and the example's
            ``index``.
        dtype: of the images given to ``apply``.
        reduce_dtype: in which gradients are summed over devices: float32, or bfloat16 for half the
            bytes.
        accumulation_steps: parts in which a device works through its share of the batch, one after
            the other, for batches that do not fit at once. Batch norm and mixing see a part each;
            the gradient is that of the whole batch. Mixing pairs the same examples where parts are
            even.
    """
    loss_function = LOSSES[loss]

    def part_gradients(
        params: PyTree, batch_stats: PyTree, batch: Batch, scalars: StageScalars, key, count
    ) -> tuple[PyTree, PyTree, Metrics]:
        """Of a part of this device's share: its term of the gradient, batch_stats, and sums."""
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
            # This part of the mean over all: dividing here spares the gradients a pass.
            return losses.sum() / count, (logits, new_batch_stats)

        gradient = jax.value_and_grad(mean_loss, has_aux=True)
        (loss_value, (logits, new_batch_stats)), gradients = gradient(params)
        # Of several labels, any will do.
        best = jnp.take_along_axis(targets, logits.argmax(-1)[:, None], axis=-1)[:, 0]
        correct = (best == targets.max(axis=-1)) * batch["mask"]
        return gradients, new_batch_stats, {"loss": loss_value * count, "correct": correct.sum()}

    def accumulated_gradients(params, batch_stats, batch, scalars, key, count):
        """The same of the whole share, part after part."""
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
        examples = {"index": _places(len(batch["mask"]))} | batch
        examples.pop("wishes", None)
        count = over_devices(lax.psum, examples["mask"].sum())
        share_gradients = part_gradients if accumulation_steps == 1 else accumulated_gradients
        gradients, new_batch_stats, sums = share_gradients(
            _gathered(params, specs), batch_stats, examples, scalars, key, count
        )
        # Where groups of devices share statistics, each has others. Divided before they are summed:
        # in the loops that move them, where after it each would be divided in one of its own.
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
            # Collectives are written out above, none is to be added for us.
            check_vma=False,
        )(params, batch_stats, step, batch, scalars)

    update = functools.partial(_update, optimizer, ema_decay, mesh)
    options = compiler_options(mesh.devices.flat[0].platform)
    return TrainStep(
        jax.jit(compute_gradients, compiler_options=options),
        jax.jit(update, donate_argnums=0, compiler_options=options),
        options,
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
        """The state after the step or, where it is not taken, as it was, but for the step."""
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        # Not the sum but what is added: so XLA makes one loop of a parameter's whole update.
        updates = jax.tree.map(lambda update: jnp.where(taken, update, 0.0), updates)
        params = optax.apply_updates(state.params, updates)
        opt_state, new_stats = jax.tree.map(
            lambda new, old: jnp.where(taken, new, old),
            (opt_state, batch_stats),
            (state.opt_state, state.batch_stats),
        )
        step = state.step + 1
        # Warm-up of tf.train.ExponentialMovingAverage: the average follows closely at first.
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

    # With a branch, XLA on CPU writes over the old state in place of copying it; on TPU, it copies.
    state = lax.platform_dependent(cpu=updated_or_left, default=lambda: updated(finite > 0))
    # Arithmetic on single numbers: every device does its part of the state alone.
    return lax.with_sharding_constraint(state, state_shardings(state, mesh))
