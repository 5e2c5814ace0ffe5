"""Times a training step: ``python -m effnetv2_jax.benchmark step --model=NAME --image_size=PX``.

Seconds to trace and compile its two programs, then the median of some steps on noise. Needs
neither TensorFlow nor clu nor TFDS. To compare two settings, alternate the commands: on a shared
machine only ratios of neighbouring runs count.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx

from effnetv2_jax.models import create_model, get_spec
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.training import step
from effnetv2_jax.training.mesh import (
    AXES,
    Batch,
    check_batch_size,
    make_mesh,
    shard_batch,
    shard_state,
)
from effnetv2_jax.training.optimizers import make_optimizer
from effnetv2_jax.training.state import TrainState, create_state, functional

MODEL = flags.DEFINE_string("model", "efficientnetv2-b0", "A name of list_models().")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 128, "Side in px.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images a step, all devices.", lower_bound=1)
NUM_CLASSES = flags.DEFINE_integer("num_classes", 10, "Of the classifier.", lower_bound=1)
OPTIMIZER = flags.DEFINE_string("optimizer", "adamw", "A name of optimizers.OPTIMIZERS.")
REPEATS = flags.DEFINE_integer("repeats", 30, "Steps that are timed.", lower_bound=5)

WARM_UP = 3


def prepare() -> tuple[step.TrainStep, TrainState, Batch, step.StageScalars]:
    """What the flags name, on noise: the step, its state, a batch and the stage's numbers."""
    mesh = make_mesh()
    check_batch_size("batch_size", BATCH_SIZE.value, mesh)
    family = get_preprocessing(get_spec(MODEL.value).preprocessing)
    model = create_model(
        MODEL.value, num_classes=NUM_CLASSES.value, axis_name=AXES, rngs=nnx.Rngs(0)
    )
    apply, params, batch_stats = functional(model)
    optimizer = make_optimizer(OPTIMIZER.value, optax.constant_schedule(1e-3), weight_decay=1e-2)
    state = shard_state(create_state(params, batch_stats, optimizer), mesh)
    train_step = step.make_train_step(
        apply,
        optimizer,
        mesh=mesh,
        num_classes=NUM_CLASSES.value,
        mean=family.mean,
        std=family.std,
    )
    rng = np.random.default_rng(0)
    shape = (BATCH_SIZE.value, IMAGE_SIZE.value, IMAGE_SIZE.value, 3)
    batch = {
        "image": rng.integers(0, 256, shape, np.uint8),
        "label": rng.integers(0, NUM_CLASSES.value, BATCH_SIZE.value, np.int32),
        "mask": np.ones(BATCH_SIZE.value, np.float32),
    }
    batch = shard_batch(batch, mesh)
    scalars = {name: jnp.float32(0) for name in ("dropout_rate", "mixup_alpha", "cutmix_alpha")}
    print(f"{MODEL.value}, {shape}, {mesh.size} × {mesh.devices.flat[0].device_kind}, "
          f"jax {jax.__version__}")  # fmt: skip
    return train_step, state, batch, scalars


def main() -> None:
    train_step, state, batch, scalars = prepare()
    arguments = (state.params, state.batch_stats, state.step, batch, scalars)
    seconds, (gradients, batch_stats, metrics) = _timed(lambda: train_step.gradients(*arguments))
    print(f"first gradients {seconds:.1f} s")
    seconds, state = _timed(
        lambda: train_step.update(state, gradients, batch_stats, metrics["finite"])
    )
    print(f"first update {seconds:.1f} s")
    steps = []
    for _ in range(WARM_UP + REPEATS.value):
        seconds, (state, _) = _timed(lambda state=state: train_step(state, batch, scalars))
        steps.append(seconds)
    steps = sorted(steps[WARM_UP:])
    median = statistics.median(steps)
    print(
        f"step {1e3 * median:.1f} ms (median of {len(steps)}, {1e3 * steps[0]:.1f} to "
        f"{1e3 * steps[-1]:.1f}), {BATCH_SIZE.value / median:.0f} images/s"
    )


def _timed(function):
    started = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - started, result
