"""Predictions as text, JSON and a picture: the program ``predict`` without its flags."""

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

FORMATS = ("table", "json")
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


def as_json(prediction: Prediction) -> str:
    """Returns one JSON object on one line, in ASCII."""
    guesses = [
        # float32 has seven digits.
        {"class": x.number, "name": x.name, "probability": float(f"{x.probability:.7g}")}
        for x in prediction.guesses
    ]
    return json.dumps({"image": prediction.image.name, "predictions": guesses})


def answer(
    arguments: list[str],
    stdin: BinaryIO,
    stdout: TextIO,
    *,
    load_model: Callable[[], tuple[Network, Loaded]],
    image_size: int | None = None,
    preprocessing: str | None = None,
    exif_orientation: bool | None = None,
    batch_size: int = 32,
    top: int | None = None,
    format: str = "table",
    picture: str | None = None,
) -> int:
    """Prints the predictions of each image.

    Args:
        arguments: Files, folders or ``-``, as for ``find_images``.
        stdin: The input that may have an image or names.
        stdout: The output for the predictions, and nothing else.
        load_model: A function that returns the network and a description of it.
        image_size: The side of the images in px. None means the network's evaluation size.
        preprocessing: The name of an input family. None means the network's.
        exif_orientation: True turns images as their EXIF says. None means as in training.
        batch_size: The number of images per batch.
        top: The number of classes per image. None means five, or all if there are fewer.
        format: A name in ``FORMATS``.
        picture: The file for a picture of the images and their classes. None draws none.

    Returns:
        The exit code, 1 if some image could not be decoded.

    Raises:
        UsageError: If a value is not allowed or does not fit the network, or if no image can be
            decoded.
    """
    for name, value in (("image_size", image_size), ("batch_size", batch_size), ("top", top)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if preprocessing:
        get_preprocessing(preprocessing)
    if picture:
        check_picture(picture)
    images = find_images(arguments, stdin.read)
    model, loaded = load_model()
    if not loaded.num_classes:
        raise UsageError("the weights have no classifier, which predictions need")
    if top and top > loaded.num_classes:
        raise UsageError(
            f"top must be at most the number of classes, {loaded.num_classes}, got {top}"
        )
    if exif_orientation is None:
        exif_orientation = loaded.exif_orientation
    family = dataclasses.replace(
        get_preprocessing(preprocessing or loaded.spec.preprocessing),
        exif_orientation=exif_orientation,
    )
    image_size = image_size or loaded.spec.eval_size
    logging.info("%s", loaded)
    logging.info(
        "images: input family %s, %d px%s (--architecture, --preprocessing, --exif_orientation and "
        "--image_size change this)",
        *(family.name, image_size, ", turned as their EXIF says" if exif_orientation else ""),
    )
    predictions = predict(
        model,
        images,
        preprocessing=family,
        image_size=image_size,
        class_names=class_names(loaded.class_names, loaded.num_classes),
        batch_size=batch_size,
        top=top or min(DEFAULT_TOP, loaded.num_classes),
    )
    with bars.spinner("compiling"):
        first = next(predictions, None)
    if first is None:
        raise UsageError(f"none of the {len(images)} images can be decoded")
    rest: Iterable[Prediction] = itertools.chain([first], predictions)
    if not stdout.isatty():  # on a terminal the predictions themselves show the progress
        rest = bars.track(rest, "predicting", len(images))
    width = column_width([image.name for image in images])
    done = []
    for prediction in rest:
        text = as_json(prediction) if format == "json" else as_table(prediction, width)
        print(text, file=stdout, flush=True)
        done.append(prediction)
    if picture:
        if len(done) > MAX_IMAGES:
            logging.info("the picture has the first %d of %d images", MAX_IMAGES, len(done))
        write_picture(picture, f"{loaded.spec.name}, {image_size} px", done[:MAX_IMAGES])
        logging.info("picture: %s", picture)
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
