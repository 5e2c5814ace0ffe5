"""Several networks as one: initialised, and asked, in a single program.

    python examples/ensemble.py

The parameters of all members are stacked, so that their convolutions run together.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from effnetv2_jax import create_model


def make_ensemble(name: str, members: int, num_classes: int):
    """Returns a network whose arrays have a first axis of members, each with other numbers."""

    @nnx.split_rngs(splits=members)
    @nnx.vmap
    def make(rngs):
        return create_model(name, num_classes=num_classes, rngs=rngs)

    return make(nnx.Rngs(0))


@nnx.jit
def predict(ensemble, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean probabilities [batch, classes] and how far the members disagree [batch]."""
    call = nnx.vmap(lambda model, images: model(images), in_axes=(0, None))
    probabilities = jax.nn.softmax(call(ensemble, images))
    return probabilities.mean(0), probabilities.std(0).max(-1)


def main(name: str = "efficientnetv2-b0", size: int = 128, members: int = 3) -> np.ndarray:
    ensemble = make_ensemble(name, members, num_classes=5)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, size, size, 3)), jnp.float32)
    probabilities, disagreement = predict(ensemble, images)
    for number, (row, spread) in enumerate(zip(probabilities, disagreement, strict=True)):
        print(f"image {number}: class {row.argmax()}, {row.max():.2f} ± {spread:.2f}")
    return np.asarray(probabilities)


if __name__ == "__main__":
    main()
