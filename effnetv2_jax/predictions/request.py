"""What somebody asks of a network, and the answer: the program below its flags."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import BinaryIO, TextIO

from absl import logging

from effnetv2_jax.data.sources.imagenet_classes import imagenet_ids, imagenet_names
from effnetv2_jax.data.sources.named_images import find_images
from effnetv2_jax.models import Network
from effnetv2_jax.predictions.picture import MAX_IMAGES, check_picture, write_picture
from effnetv2_jax.predictions.prediction import Prediction, predict
from effnetv2_jax.predictions.printing import FORMATS, column_width
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime import bars
from effnetv2_jax.runtime.errors import UsageError, unknown_name
from effnetv2_jax.weights import Loaded

DEFAULT_TOP = 5


@dataclasses.dataclass(frozen=True)
class Request:
    """Of (arguments) → predictions.

    Attributes:
        load_model: of no arguments → the network and what is known of it.
        image_size: side in px; None takes the network's evaluation size.
        preprocessing: name of an input family; None takes the network's.
        batch_size: images that the device works on at a time.
        top: classes of an image; None takes five, or all where there are fewer.
        format: a name in ``FORMATS``.
        picture: file to draw the images and their classes to; None for none.

    Raises:
        UsageError: for a value that cannot be used.
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
    """Prints what the network sees in each image.

    Args:
        request: what is asked.
        arguments: files, folders or ``-``, as for ``find_images``.
        stdin: where an image or names may come from.
        stdout: gets the predictions, and nothing else.

    Returns:
        The exit code: 1 where some image could not be decoded.

    Raises:
        UsageError: where something asked cannot be had, or no image can be decoded.
    """
    images = find_images(arguments, stdin.read)
    width = column_width([image.name for image in images])
    model, loaded = request.load_model()
    family = get_preprocessing(request.preprocessing or loaded.spec.preprocessing)
    image_size = request.image_size or loaded.spec.eval_size
    logging.info("%s", loaded)
    logging.info("images as the family %s has them, %d px", family.name, image_size)
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
    if not stdout.isatty():  # on a terminal the predictions themselves show how far it is
        rest = bars.track(rest, "predicting", len(images))
    done = []
    for prediction in rest:
        print(FORMATS[request.format](prediction, width), file=stdout, flush=True)
        done.append(prediction)
    if request.picture:
        _draw(request.picture, f"{loaded.spec.name}, {image_size} px", done)
    return int(len(done) < len(images))


def class_names(names: tuple[str, ...] | None, num_classes: int) -> tuple[str, ...]:
    """What classes are called.

    Args:
        names: that came with the weights; WordNet's ids of ImageNet-1k are put into words.
        num_classes: of the network; 1,000 without names are taken for ImageNet-1k's.
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
