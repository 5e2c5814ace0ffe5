"""Position embeddings of ViTs: for which images they are, and how they become those of others.

A position embedding is [1, 1 + grid · grid, width]: the class token's row, then row after row of
patches. Nothing else in a ViT knows the image's size.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

POSITIONS = "embed.positions"
"""Its name."""


def grid_of(shape: tuple[int, ...]) -> int:
    """Patches along a side of the image; 0 where the shape is not that of a square's."""
    if len(shape) != 3 or shape[1] < 2:
        return 0
    grid = math.isqrt(shape[1] - 1)
    return grid if grid**2 == shape[1] - 1 else 0


def interpolate(positions: np.ndarray, grid: int) -> np.ndarray:
    """The embedding for another image size, as timm makes it.

    Bicubic, with antialiasing where it shrinks; the class token keeps its row.

    Args:
        positions: float32 [1, 1 + old · old, width].
        grid: patches along a side of the image.

    Returns:
        float32 [1, 1 + grid · grid, width].
    """
    old, width = grid_of(positions.shape), positions.shape[-1]
    start, patches = positions[:, :1], jnp.asarray(positions[:, 1:])
    square = patches.reshape(1, old, old, width)
    # Keys' cubic with a = −0.5, which is PyTorch's where it is told to antialias.
    square = jax.image.resize(square, (1, grid, grid, width), "cubic", antialias=True)
    return np.concatenate([start, np.asarray(square).reshape(1, -1, width)], axis=1)
