"""Classifies images: ``python -m effnetv2_jax.predict --weights=PATH_OR_NAME IMAGE …``.

IMAGE is an image file, a folder (all images below it), or ``-`` for standard input: an image, or
names of files, one per line. Predictions go to standard output, everything else to standard error.
The exit code is 1 if some of the images could not be decoded.
"""

from effnetv2_jax.runtime import extras

extras.need_for_program("train")

import logging as std_logging
import signal
import sys

from absl import flags, logging

from effnetv2_jax.predictions.request import answer
from effnetv2_jax.runtime import caches, cli
from effnetv2_jax.runtime.signals import leave
from effnetv2_jax.weights import load_model

WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "File, workdir of a run, name of published weights, or address (https://…, hf://OWNER/REPO).",
    required=True,
)
MODEL = flags.DEFINE_string(
    "model", None, "Model, a name in list_models(). Inferred from the weights by default."
)
ARCHITECTURE = flags.DEFINE_string(
    "architecture",
    None,
    "timm's name of the network, such as tf_efficientnetv2_s.in1k. By default what the file, its "
    "config.json or its name says.",
)
EMA = flags.DEFINE_bool("ema", True, "Use the averaged weights and batch statistics.")
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Side of the images in px. The model's evaluation size by default."
)
PREPROCESSING = flags.DEFINE_string(
    "preprocessing",
    None,
    "Images that the weights expect, a name in effnetv2_jax/preprocessing.py. By default those of "
    "the weights' origin.",
)
EXIF_ORIENTATION = flags.DEFINE_bool(
    "exif_orientation",
    None,
    "Turn photographs as their EXIF says. As in training by default; off if that is unknown.",
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Number of images per batch.")
TOP = flags.DEFINE_integer(
    "top", None, "Number of classes shown per image. 5 by default, or all if there are fewer."
)
FORMAT = flags.DEFINE_string(
    "format",
    None,
    "table, json for one JSON object per line, or csv for one record per image. By default what "
    "--output ends in, or table.",
)
OUTPUT = flags.DEFINE_string(
    "output", None, "File for the predictions, such as a.csv, instead of standard output."
)
PICTURE = flags.DEFINE_string(
    "picture", None, "File for a picture of the images and their classes, such as a.png."
)


def main(arguments: list[str]) -> None:
    # A person reads this, so it needs no time, thread and file, as a log does.
    logging.get_absl_handler().setFormatter(std_logging.Formatter("%(message)s"))
    flags.FLAGS["logtostderr"].value = True  # a progress bar replaces stderr and lets lines pass
    caches.turn_on()
    try:
        code = answer(
            arguments,
            sys.stdin.buffer,
            sys.stdout,
            load_model=lambda: load_model(
                WEIGHTS.value,
                MODEL.value,
                ema=EMA.value,
                architecture=ARCHITECTURE.value,
                preprocessing=PREPROCESSING.value,
            ),
            image_size=IMAGE_SIZE.value,
            preprocessing=PREPROCESSING.value,
            exif_orientation=EXIF_ORIENTATION.value,
            batch_size=BATCH_SIZE.value,
            top=TOP.value,
            format=FORMAT.value,
            output=OUTPUT.value,
            picture=PICTURE.value,
        )
    except BrokenPipeError:
        leave(128 + signal.SIGPIPE)  # the reader has seen enough; shells expect this code
    sys.exit(code)


if __name__ == "__main__":
    cli.run(main, takes_arguments=True)
