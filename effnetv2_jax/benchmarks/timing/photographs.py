"""JPEGs of any size to measure with, if no data set is at hand: parts of two photographs."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from effnetv2_jax.data.sources import Source, Split

NUM_PHOTOGRAPHS = 128
QUALITY = 92
# Enlarged parts of photographs lack a camera's grain. Without it, the files would be too small.
_GRAIN = 2.2


def photographs(width: int, height: int) -> Source:
    """Makes random parts of scikit-learn's two photographs, resized and with some grain.

    They are the same in every call.

    Args:
        width: The width in px.
        height: The height in px.

    Returns:
        A source with one split, ``train``, of NUM_PHOTOGRAPHS JPEGs of quality QUALITY in memory.
    """
    rng = np.random.default_rng(0)
    images = [Image.fromarray(array) for array in load_sample_images().images]
    files = []
    for i in range(NUM_PHOTOGRAPHS):
        image = images[i % len(images)]
        part_width = rng.uniform(0.75, 1) * min(image.width, image.height * width / height)
        part_height = part_width * height / width
        left, top = rng.uniform(0, (image.width - part_width, image.height - part_height))
        box = (left, top, left + part_width, top + part_height)
        part = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
        pixels = np.asarray(part) + rng.normal(0, _GRAIN, (height, width, 1))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
        files.append(file.getvalue())
    encoded = tf.constant(files)
    split = Split.of_examples(
        NUM_PHOTOGRAPHS, lambda index: {"image": tf.gather(encoded, index), "label": index}
    )
    kilobytes = sum(map(len, files)) / len(files) / 1000
    return Source(
        name=f"JPEGs of {width} × {height} px ({kilobytes:.0f} KB)",
        class_names=tuple(map(str, range(NUM_PHOTOGRAPHS))),
        split=lambda name: split,
    )
