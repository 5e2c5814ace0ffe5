"""Trains on all devices: ``jax.jit`` with shardings, and nothing else.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/data_parallel.py

Each device has a part of the batch and all parameters. Batch norm takes the statistics of the whole
batch, as on one device.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from effnetv2_jax import create_model


def main(name: str = "efficientnetv2-b0", size: int = 128, steps: int = 10) -> list[float]:
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("data"))

    model = create_model(name, num_classes=2)
    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.sgd(0.05)
    state = jax.device_put((params, rest, optimizer.init(params)), everywhere)

    @jax.jit
    def step(state, images, labels):
        params, rest, opt_state = state

        def loss_fn(params):
            model = nnx.merge(graph, params, rest, copy=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(model(images), labels)
            # ``rest``: the statistics of batch norm and the state of the random numbers.
            return losses.mean(), nnx.split(model, nnx.Param, ...)[2]

        (loss, rest), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return (optax.apply_updates(params, updates), rest, opt_state), loss

    losses = []
    for number in range(steps):
        rng = np.random.default_rng(number)
        labels = rng.integers(0, 2, 2 * jax.device_count())
        images = rng.normal(size=(len(labels), size, size, 3)) + labels[:, None, None, None]
        batch = jax.device_put((images.astype(np.float32), jnp.asarray(labels)), split)
        state, loss = step(state, *batch)
        losses.append(float(loss))
    print(f"{jax.device_count()} devices, losses:", *(f"{loss:.3f}" for loss in losses))
    return losses


if __name__ == "__main__":
    main()
