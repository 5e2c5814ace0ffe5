"""A network as a part of a Flax Linen module, trained with Linen's variables.

python examples/linen_module.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from effnetv2_jax import create_model


class WithTime(nn.Module):
    """Classifies an image and a number together."""

    name_of_network: str
    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, time: jax.Array, train: bool = False) -> jax.Array:
        network = nnx.bridge.to_linen(
            create_model, self.name_of_network, num_classes=0, name="network"
        )
        x = network(images, train=train)  # pooled features [batch, features]
        return nn.Dense(self.num_classes)(jnp.concatenate([x, time[:, None]], axis=-1))


def main(name: str = "efficientnetv2-b0", size: int = 128, steps: int = 8) -> list[float]:
    module = WithTime(name, num_classes=2)
    labels, time = jnp.arange(8) % 2, jnp.arange(8.0) / 8
    images = jnp.ones((8, size, size, 3)) * (labels - 0.5)[:, None, None, None]
    variables = module.init(jax.random.key(0), images, time)
    params, batch_stats = variables["params"], variables["batch_stats"]
    optimizer = optax.adam(1e-2)
    state = optimizer.init(params)

    @jax.jit
    def step(params, batch_stats, state, key):
        def loss_fn(params):
            logits, updates = module.apply(
                {"params": params, "batch_stats": batch_stats},
                *(images, time),
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updates["batch_stats"]

        (loss, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), batch_stats, state, loss

    losses = []
    for number in range(steps):
        params, batch_stats, state, loss = step(params, batch_stats, state, jax.random.key(number))
        losses.append(float(loss))
    print("losses:", *(f"{loss:.3f}" for loss in losses))
    return losses


if __name__ == "__main__":
    main()
