"""A request for predictions and its answer, as text: the program ``predict`` without its flags."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable
from typing import BinaryIO, TextIO

from absl import logging
from rich.cells import cell_len

from effnetv2_jax.data.sources.imagenet_classes import imagenet_ids, imagenet_names
from effnetv2_jax.data.sources.named_images import find_images, printable
from effnetv2_jax.models import Network
from effnetv2_jax.predictions.picture import MAX_IMAGES, check_picture, write_picture
from effnetv2_jax.predictions.prediction import Prediction, predict
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime import bars
from effnetv2_jax.runtime.errors import UsageError, unknown_name
from effnetv2_jax.weights import Loaded

DEFAULT_TOP = 5
# The widest column of names. Longer names push their line to the right.
MAX_COLUMN = 48


def column_width(names: list[str]) -> int:
    """Returns the width of a column with these names, in cells of a terminal."""
    return min(max(cell_len(printable(name)) for name in names), MAX_COLUMN)


def as_table(prediction: Prediction, width: int) -> str:
    """Returns a line for each guess: percent and class. The first has the name of the image.

    Args:
        prediction: The prediction of one image.
        width: The width of the column of images.
    """
    names = [printable(prediction.image.name), *[""] * (len(prediction.guesses) - 1)]
    return "\n".join(
        f"{name}{' ' * (width - cell_len(name))}  {100 * guess.probability:6.2f} %  "
        f"{printable(guess.name)}"
        for name, guess in zip(names, prediction.guesses, strict=True)
    )


def as_json(prediction: Prediction, width: int) -> str:
    """Returns one JSON object on one line, in ASCII."""
    del width
    guesses = [
        # float32 has seven digits.
        {"class": x.number, "name": x.name, "probability": float(f"{x.probability:.7g}")}
        for x in prediction.guesses
    ]
    return json.dumps({"image": prediction.image.name, "predictions": guesses})


FORMATS: dict[str, Callable[[Prediction, int], str]] = {"table": as_table, "json": as_json}
"""Functions of a prediction and the width of the column of images that return lines."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A request for predictions.

    Attributes:
        load_model: A function that returns the network and a description of it.
        image_size: The side of the images in px. None means the network's evaluation size.
        preprocessing: The name of an input family. None means the network's.
        batch_size: The number of images per batch.
        top: The number of classes per image. None means five, or all if there are fewer.
        format: A name in ``FORMATS``.
        picture: The file for a picture of the images and their classes. None draws none.

    Raises:
        UsageError: For a value that is not allowed.
    """

    load_model: Callable[[], tuple[Network, Loaded]]
    image_size: int | None = None
    preprocessing: str | None = None
    batch_size: int = 32
    top: int | None = None
    format: str = "table"
    picture: str | None = None

    def __post_init__(self):
        for name in ("image_size", "batch_size", "top"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        if self.format not in FORMATS:
            raise unknown_name("format", self.format, FORMATS)
        if self.preprocessing:
            get_preprocessing(self.preprocessing)
        if self.picture:
            check_picture(self.picture)


def answer(request: Request, arguments: list[str], stdin: BinaryIO, stdout: TextIO) -> int:
    """Prints the predictions of each image.

    Args:
        request: The request.
        arguments: Files, folders or ``-``, as for ``find_images``.
        stdin: The input that may have an image or names.
        stdout: The output for the predictions, and nothing else.

    Returns:
        The exit code, 1 if some image could not be decoded.

    Raises:
        UsageError: If the request does not fit the network, or if no image can be decoded.
    """
    images = find_images(arguments, stdin.read)
    width = column_width([image.name for image in images])
    model, loaded = request.load_model()
    family = get_preprocessing(request.preprocessing or loaded.spec.preprocessing)
    image_size = request.image_size or loaded.spec.eval_size
    logging.info("%s", loaded)
    logging.info("images: input family %s, %d px", family.name, image_size)
    predictions = predict(
        model,
        images,
        preprocessing=family,
        image_size=image_size,
        class_names=class_names(loaded.class_names, loaded.num_classes),
        batch_size=request.batch_size,
        top=_top(request.top, loaded.num_classes),
    )
    with bars.spinner("compiling"):
        first = next(predictions, None)
    if first is None:
        raise UsageError(f"none of the {len(images)} images can be decoded")
    rest: Iterable[Prediction] = itertools.chain([first], predictions)
    if not stdout.isatty():  # on a terminal the predictions themselves show the progress
        rest = bars.track(rest, "predicting", len(images))
    done = []
    for prediction in rest:
        print(FORMATS[request.format](prediction, width), file=stdout, flush=True)
        done.append(prediction)
    if request.picture:
        _draw(request.picture, f"{loaded.spec.name}, {image_size} px", done)
    return int(len(done) < len(images))


def class_names(names: tuple[str, ...] | None, num_classes: int) -> tuple[str, ...]:
    """Returns the names of a network's classes.

    Args:
        names: The names that come with the weights. WordNet ids of ImageNet-1k become words.
        num_classes: The number of classes. 1,000 classes without names count as ImageNet-1k's.
    """
    if names is None and num_classes != len(imagenet_names()):
        return tuple(f"class {number}" for number in range(num_classes))
    return imagenet_names() if names in (None, imagenet_ids()) else names


def _top(top: int | None, num_classes: int) -> int:
    if not num_classes:
        raise UsageError("the weights have no classifier, which predictions need")
    if top and top > num_classes:
        raise UsageError(f"top must be at most the number of classes, {num_classes}, got {top}")
    return top or min(DEFAULT_TOP, num_classes)


def _draw(path: str, title: str, predictions: list[Prediction]) -> None:
    if len(predictions) > MAX_IMAGES:
        logging.info("the picture has the first %d of %d images", MAX_IMAGES, len(predictions))
    write_picture(path, title, predictions[:MAX_IMAGES])
    logging.info("picture: %s", path)
