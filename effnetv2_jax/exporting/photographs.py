"""Photographs to calibrate and to compare with, prepared as for an evaluation."""

import numpy as np

from effnetv2_jax.data import pipeline
from effnetv2_jax.data.sources.named_images import find_images, named_source
from effnetv2_jax.preprocessing import Preprocessing
from effnetv2_jax.runtime.errors import UsageError

MOST = 400
"""The number of photographs that are read of a folder."""

_BATCH = 32


def read(folder: str, *, image_size: int, preprocessing: Preprocessing) -> np.ndarray:
    """Returns photographs that can be decoded, uint8 [number, image_size, image_size, 3].

    Of more than ``MOST`` photographs, it takes some at equal distances in the order of their paths.

    Args:
        folder: A folder, or an image file.
        image_size: The side of the images in px.
        preprocessing: The input family.

    Raises:
        UsageError: If there are fewer than two.
    """
    images = find_images([folder], read_stdin=bytes)
    images = images[:: -(-len(images) // MOST)]
    batches = pipeline.eval_batches(
        named_source(images),
        "all",
        image_size=image_size,
        batch_size=min(_BATCH, len(images)),
        preprocessing=preprocessing,
        max_bad_fraction=1.0,
    )
    found = np.concatenate([batch["image"][batch["mask"] > 0] for batch in batches])
    if len(found) < 2:
        raise UsageError(
            f"{folder!r} must have at least 2 images that can be decoded, has {len(found)}"
        )
    return found
