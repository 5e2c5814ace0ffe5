"""Finds the pixels of a bright disc: a segmentation head on a network's feature maps.

    python examples/segment.py

``output_stride=16`` keeps the last maps larger; weights of the network load as ever.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from effnetv2_jax import create_model


class Segmenter(nnx.Module):
    """A 1 × 1 convolution for each map; their sum, enlarged, has a logit for every pixel."""

    def __init__(self, name: str, rngs: nnx.Rngs):
        self.backbone = create_model(name, num_classes=0, output_stride=16, rngs=rngs)
        info = self.backbone.feature_info
        self.levels = (2, len(info))
        self.heads = nnx.List(
            [nnx.Conv(info[n - 1].channels, 1, (1, 1), rngs=rngs) for n in self.levels]
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps [batch, height, width, 3] to logits [batch, height, width]."""
        maps = self.backbone.features(images, levels=self.levels)
        shape = (*images.shape[:3], 1)
        logits = [
            jax.image.resize(head(maps[f"reduction_{n}"]), shape, "bilinear")
            for n, head in zip(self.levels, self.heads, strict=True)
        ]
        return sum(logits)[..., 0]


def discs(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centers = rng.uniform(0.3, 0.7, (8, 2)) * size
    masks = np.stack([np.hypot(y - a, x - b) < size / 4 for a, b in centers])
    images = rng.normal(0, 0.3, (8, size, size, 3)) + masks[..., None]
    return images.astype(np.float32), masks


@nnx.jit
def train_step(model, optimizer, images, masks):
    def loss_fn(model):
        return optax.sigmoid_binary_cross_entropy(model(images), masks).mean()

    loss, gradients = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, gradients)
    return loss


def main(name: str = "efficientnetv2-b0", size: int = 128, steps: int = 60) -> float:
    model = Segmenter(name, nnx.Rngs(0))
    model.train()
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    for step in range(steps):
        loss = train_step(model, optimizer, *discs(size, step))
    images, masks = discs(size, steps)
    found = nnx.jit(lambda m, x: m(x))(model, images) > 0
    overlap = float(jnp.sum(found & masks) / jnp.sum(found | masks))
    print(f"loss {loss:.3f}, intersection over union on new images {overlap:.2f}")
    return overlap


if __name__ == "__main__":
    main()
