"""Trains ten steps on 1, 8 and 32 simulated devices, for ``test_many_devices.py``.

With all that is random: stochastic depth, dropout, Mixup and CutMix.

Prints JSON: the losses of each, and how far each one's parameters are from the first one's.
"""

import json

import jax
import numpy as np
import optax
from flax import nnx

from effnetv2_jax.models import create_model
from effnetv2_jax.training.mesh import AXES, make_mesh, shard_batch, shard_state
from effnetv2_jax.training.state import create_state, functional
from effnetv2_jax.training.step import make_train_step

BATCH, CLASSES, STEPS = 64, 10, 10
OPTIMIZER = optax.sgd(0.02, momentum=0.9)
SCALARS = {
    "dropout_rate": np.float32(0.5),
    "mixup_alpha": np.float32(0.2),
    "cutmix_alpha": np.float32(1.0),
}


def train(devices):
    mesh = make_mesh(jax.devices()[:devices])
    model = create_model(
        "efficientnetv2-tiny",
        num_classes=CLASSES,
        axis_name=AXES,
        rngs=nnx.Rngs(0),
        survival_prob=0.8,
    )
    apply, params, batch_stats = functional(model)
    state = shard_state(create_state(params, batch_stats, OPTIMIZER), mesh)
    train_step = make_train_step(
        apply,
        OPTIMIZER,
        mesh=mesh,
        num_classes=CLASSES,
        mean=(128.0,) * 3,
        std=(128.0,) * 3,
        mixing=True,
    )
    losses = []
    for seed in range(STEPS):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, CLASSES, BATCH)
        images = rng.integers(0, 128, (BATCH, 32, 32, 3)) + 12 * labels[:, None, None, None]
        batch = {
            "image": images.astype(np.uint8),
            "label": labels.astype(np.int32),
            "mask": np.ones(BATCH, np.float32),
        }
        state, sums = train_step(state, shard_batch(batch, mesh), SCALARS)
        losses.append(float(sums["loss"]) / BATCH)
    return losses, jax.device_get(state.params)


results = [train(devices) for devices in (1, 8, 32)]
parameters = [jax.tree.leaves(params) for _, params in results]
differences = [
    max(float(np.abs(a - b).max()) for a, b in zip(parameters[0], leaves, strict=True))
    for leaves in parameters
]
print(json.dumps({"losses": [losses for losses, _ in results], "largest_difference": differences}))
