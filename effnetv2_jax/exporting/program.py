"""A network as one function of images, with its parameters inside: what every format writes."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from effnetv2_jax.models import Network, fold_batch_norm
from effnetv2_jax.preprocessing import Preprocessing, get_preprocessing
from effnetv2_jax.training.state import functional
from effnetv2_jax.training.step import normalize

LABELS_FILE = "labels.txt"
"""The class names inside an artefact, one per line in the order of the labels."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A network that is ready to be written.

    Attributes:
        logits: The function, from images of ``shape`` and ``dtype`` to float32 [batch, classes].
        image_size: The side of the images in px.
        batch_size: The number of images per call; None for any number.
        dtype: ``uint8`` if the function normalises, else ``float32`` for normalised images.
        preprocessing: The input family of the images.
        class_names: One name per class.
    """

    logits: Callable[[jax.Array], jax.Array]
    image_size: int
    batch_size: int | None
    dtype: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int | None, int, int, int]:
        """The shape of the images; None stands for any batch size."""
        return (self.batch_size, self.image_size, self.image_size, 3)

    @property
    def labels(self) -> bytes:
        """The class names, one per line."""
        text = "".join(f"{name}\n" for name in self.class_names)
        return text.encode(errors="surrogateescape")

    def prepared(self, images: np.ndarray) -> np.ndarray:
        """Returns images, uint8 [batch, size, size, 3], as the function takes them."""
        if self.dtype == "uint8":
            return images
        family = self.preprocessing
        return np.asarray(normalize(jnp.asarray(images), family.mean, family.std))


def make_program(
    model: Network,
    *,
    class_names: tuple[str, ...],
    image_size: int,
    batch_size: int | None,
    preprocess: bool,
) -> Program:
    """Returns a network as a program; its batch norm is folded into the convolutions.

    Args:
        model: The network, which is not changed.
        class_names: One name per class.
        image_size: The side of the images in px.
        batch_size: The number of images per call; None for any number.
        preprocess: Takes uint8 images and normalises them.
    """
    family = get_preprocessing(model.spec.preprocessing)
    apply, params, batch_stats = functional(fold_batch_norm(model))

    def logits(images: jax.Array) -> jax.Array:
        if preprocess:
            images = normalize(images, family.mean, family.std)
        return apply(params, batch_stats, images, train=False)[0]

    dtype = "uint8" if preprocess else "float32"
    return Program(logits, image_size, batch_size, dtype, family, class_names)
