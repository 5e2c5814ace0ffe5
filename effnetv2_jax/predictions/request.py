"""Predictions as text, JSON and a picture: the program ``predict`` without its flags."""

import contextlib
import csv
import dataclasses
import functools
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
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
from effnetv2_jax.runtime.errors import UsageError, reason, unknown_name
from effnetv2_jax.runtime.files import local_path, whole_file
from effnetv2_jax.weights import Loaded

FORMATS = ("table", "json", "csv")
# The formats of an output file by its ending.
ENDINGS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".txt": "table"}
DEFAULT_TOP = 5
_COLUMNS = ("class", "name", "probability")
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


def csv_header(top: int) -> str:
    """Returns the first line of a CSV file with so many classes per image."""
    columns = (f"{name}_{rank}" for rank in range(1, top + 1) for name in _COLUMNS)
    return ",".join(["image", *columns])


def as_csv(prediction: Prediction) -> str:
    """Returns one record: the image, then number, name and probability of each guess."""
    record: list[object] = [prediction.image.name]
    for guess in prediction.guesses:
        record += [guess.number, guess.name, f"{guess.probability:.7g}"]
    text = io.StringIO()
    csv.writer(text).writerow(record)
    return text.getvalue().removesuffix("\r\n")


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
    format: str | None = None,
    output: str | None = None,
    picture: str | None = None,
) -> int:
    """Prints the predictions of each image as soon as its batch is done, and keeps none of them.

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
        format: A name in ``FORMATS``. None means the one of the output's ending, or ``table``.
        output: The file to write instead of ``stdout``. It appears when it is complete.
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
    ending = os.path.splitext(output)[1].lower() if output else ".txt"
    if format is None and ending not in ENDINGS:
        raise UsageError(
            f"output {output!r} must end in one of {', '.join(ENDINGS)}, or --format name its "
            f"format: {', '.join(FORMATS)}"
        )
    format = format or ENDINGS[ending]
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
    top = top or min(DEFAULT_TOP, loaded.num_classes)
    predictions = predict(
        model,
        images,
        preprocessing=family,
        image_size=image_size,
        class_names=class_names(loaded.class_names, loaded.num_classes),
        batch_size=batch_size,
        top=top,
    )
    with _opened(output, stdout) as file:
        with bars.spinner("compiling"):
            first = next(predictions, None)
        if first is None:
            raise UsageError(f"none of the {len(images)} images can be decoded")
        rest: Iterable[Prediction] = itertools.chain([first], predictions)
        if not file.isatty():  # on a terminal the predictions themselves show the progress
            rest = bars.track(rest, "predicting", len(images))
        width = column_width([image.name for image in images])
        write: dict[str, Callable[[Prediction], str]]
        write = {"table": functools.partial(as_table, width=width), "json": as_json, "csv": as_csv}
        if format == "csv":
            print(csv_header(top), file=file)
        count, drawn = 0, list[Prediction]()
        for prediction in rest:
            print(write[format](prediction), file=file, flush=output is None)
            count += 1
            if picture and len(drawn) < MAX_IMAGES:
                drawn.append(prediction)
    if output:
        logging.info("%s: %d images", output, count)
    if picture:
        if count > MAX_IMAGES:
            logging.info("the picture has the first %d of %d images", MAX_IMAGES, count)
        write_picture(picture, f"{loaded.spec.name}, {image_size} px", drawn)
        logging.info("picture: %s", picture)
    return int(count < len(images))


@contextlib.contextmanager
def _opened(output: str | None, stdout: TextIO) -> Iterator[TextIO]:
    """Opens the file for predictions, which appears when the block ends; None means ``stdout``."""
    if output is None:
        yield stdout
        return
    path = local_path(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            whole_file(path) as temporary,
            # Names of files need not be text.
            temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
        ):
            yield file
    except OSError as error:
        raise UsageError(f"output {output!r} cannot be written: {reason(error)}") from error


def class_names(names: tuple[str, ...] | None, num_classes: int) -> tuple[str, ...]:
    """Returns the names of a network's classes.

    Args:
        names: The names that come with the weights. WordNet ids of ImageNet-1k become words.
        num_classes: The number of classes. 1,000 classes without names count as ImageNet-1k's.
    """
    if names is None and num_classes != len(imagenet_names()):
        return tuple(f"class {number}" for number in range(num_classes))
    return imagenet_names() if names in (None, imagenet_ids()) else names
