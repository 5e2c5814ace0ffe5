"""Fine-tunes a network on other classes, in plain Flax NNX and optax.

    python examples/finetune.py [WEIGHTS]

WEIGHTS is a file that ``load_weights`` reads; without it the network starts from random numbers.
First only the new classifier learns, then everything does, with a smaller rate for the old layers.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from effnetv2_jax import create_model, load_weights


def batches(size: int, count: int, seed: int = 0):
    """Yields images whose brightest colour is their class; put your own pictures here."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        labels = rng.integers(0, 3, 16)
        images = rng.normal(0, 0.5, (16, size, size, 3)) + np.eye(3)[labels][:, None, None]
        yield images.astype(np.float32), labels


@nnx.jit
def train_step(model, optimizer, images, labels):
    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, gradients)
    return loss


def optimizer_for(model, rates: dict[str, float]) -> nnx.Optimizer:
    """Makes an optimiser with a rate for the ``head`` and one for the ``body``; 0 freezes."""
    transforms = {
        part: optax.adamw(rate) if rate else optax.set_to_zero() for part, rate in rates.items()
    }

    def parts(params):
        def part(path, _):
            return "head" if path[0].key == "classifier" else "body"

        return jax.tree_util.tree_map_with_path(part, params)

    return nnx.Optimizer(model, optax.partition(transforms, parts), wrt=nnx.Param)


def main(weights: str = "", name: str = "efficientnetv2-s", size: int = 128, steps: int = 20):
    model = create_model(name)
    if weights:
        print(load_weights(model, weights))
    model.reset_classifier(3)
    for rates, train in (({"head": 1e-2, "body": 0}, False), ({"head": 1e-3, "body": 1e-4}, True)):
        # In evaluation mode, batch norm keeps the statistics it has learnt.
        model.train() if train else model.eval()
        optimizer = optimizer_for(model, rates)
        for images, labels in batches(size, steps):
            loss = train_step(model, optimizer, images, labels)
        print(f"{rates}: loss {loss:.3f}")
    model.eval()
    images, labels = next(batches(size, 1, seed=1))
    accuracy = float(jnp.mean(nnx.jit(lambda m, x: m(x))(model, images).argmax(-1) == labels))
    print(f"accuracy on new images: {accuracy:.0%}")
    return accuracy


if __name__ == "__main__":
    main(*sys.argv[1:])
