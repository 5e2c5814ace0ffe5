"""Predicts the likeliest classes of images, batch after batch."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax import lax

from effnetv2_jax.data import pipeline
from effnetv2_jax.data.sources.named_images import NamedImage, named_source
from effnetv2_jax.models import Network
from effnetv2_jax.models.kernels.compiler import compiler_options
from effnetv2_jax.preprocessing import Preprocessing
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training.preparation import Feed
from effnetv2_jax.training.state import Apply, PyTree, functional
from effnetv2_jax.training.step import normalize

# A function of params, batch_stats and images, uint8 [batch, size, size, 3], that returns
# probabilities, float32 [batch, top], and classes, int32 [batch, top].
PredictStep = Callable[[PyTree, PyTree, np.ndarray], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Guess:
    """A class that an image may be of.

    Attributes:
        number: The number of the class, from 0.
        name: The name of the class.
        probability: The probability in 0 … 1.
    """

    number: int
    name: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image.

    Attributes:
        image: The image.
        guesses: The classes, the likeliest first.
    """

    image: NamedImage
    guesses: tuple[Guess, ...]


def predict(
    model: Network,
    images: list[NamedImage],
    *,
    preprocessing: Preprocessing,
    image_size: int,
    class_names: tuple[str, ...],
    batch_size: int = 32,
    top: int = 5,
) -> Iterator[Prediction]:
    """Yields a prediction of every image that can be decoded, in their order.

    The log names the other images. Images are prepared as in an evaluation, by threads that begin
    before the program is compiled. The program runs on JAX's default device.

    Args:
        model: The network, in evaluation mode or not.
        images: At least one image.
        preprocessing: The input family.
        image_size: The side of the images in px.
        class_names: One name per class.
        batch_size: The number of images per batch.
        top: The number of guesses per image, at most the number of classes.

    Raises:
        UsageError: During iteration, if the network's outputs are not finite.
    """
    batch_size = min(batch_size, len(images))
    batches = pipeline.eval_batches(
        named_source(images),
        "all",
        image_size=image_size,
        batch_size=batch_size,
        preprocessing=preprocessing,
        max_bad_fraction=1.0,
    )
    feed = Feed(batches)
    apply, params, batch_stats = functional(model)
    predict_step = _make_predict_step(apply, preprocessing, top)
    try:
        for begin in range(0, len(images), batch_size):
            batch = feed.next()
            assert batch is not None  # nobody gives up
            arrays = jax.device_get(predict_step(params, batch_stats, batch["image"]))
            # The last batch may be longer than what is left of the images.
            rows = zip(images[begin:], batch["mask"], *arrays, strict=False)
            for image, mask, probabilities, classes in rows:
                if mask:
                    yield Prediction(image, _guesses(probabilities, classes, class_names))
    finally:
        feed.close()


def _make_predict_step(apply: Apply, preprocessing: Preprocessing, top: int) -> PredictStep:
    """Builds the step, which compiles once per shape. The likeliest classes come first."""

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def predict_step(params: PyTree, batch_stats: PyTree, images: jax.Array):
        images = normalize(images, preprocessing.mean, preprocessing.std)
        logits, _ = apply(params, batch_stats, images, train=False)
        return tuple(lax.top_k(jax.nn.softmax(logits), top))

    return predict_step


def _guesses(
    probabilities: np.ndarray, classes: np.ndarray, class_names: tuple[str, ...]
) -> tuple[Guess, ...]:
    if not np.isfinite(probabilities).all():
        raise UsageError(
            "the network's outputs are not finite numbers: its weights are damaged, or belong to "
            "another network"
        )
    return tuple(
        Guess(number, class_names[number], probability)
        for number, probability in zip(classes.tolist(), probabilities.tolist(), strict=True)
    )
