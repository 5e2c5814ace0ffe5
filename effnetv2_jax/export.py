"""Exports a network: ``python -m effnetv2_jax.export --weights=PATH_OR_NAME --to=onnx``.

It writes a folder with the network in a format that runs without this package, its weights and a
description, after comparing the two. ``--check=FOLDER`` compares them again, on another machine or
after an update of the libraries.
"""

from effnetv2_jax.runtime import extras

extras.need_for_program("train")
extras.hush_tensorflow(3)

import logging as std_logging

from absl import flags, logging

from effnetv2_jax.exporting.formats import FORMATS, NONE, QUANTIZATIONS
from effnetv2_jax.exporting.request import answer, check_again
from effnetv2_jax.runtime import caches, cli
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import load_model

WEIGHTS = flags.DEFINE_string(
    "weights", None, "File, workdir of a run, or name of published weights."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run, in place of --weights.")
TO = flags.DEFINE_string("to", None, f"Format: {', '.join(FORMATS)}.")
OUTPUT = flags.DEFINE_string(
    "output", None, "New folder for the export. Default: the model's name and the format's."
)
CHECK = flags.DEFINE_string("check", None, "Folder of an export to compare again.")
PREPROCESS = flags.DEFINE_bool(
    "preprocess",
    False,
    "Take uint8 images of 0 … 255 and normalise them; a SavedModel then takes image files, too.",
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Side of the images in px. The model's evaluation size by default."
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    None,
    "Number of images per call. Any number by default, but 1 for tflite, which needs a number.",
)
QUANTIZE = flags.DEFINE_string(
    "quantize", NONE, f"Numbers of a tflite file: {', '.join(QUANTIZATIONS)} (none is float32)."
)
IMAGES = flags.DEFINE_string(
    "images",
    None,
    "Folder of photographs on which the artefact is compared to the network. For int8, every "
    "second one calibrates, and the others are compared.",
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
PREPROCESSING = flags.DEFINE_string(
    "preprocessing",
    None,
    "Images that the weights expect, a name in effnetv2_jax/preprocessing.py. By default those of "
    "the weights' origin.",
)
EMA = flags.DEFINE_bool("ema", True, "Use the averaged weights and batch statistics.")


def main() -> None:
    # The converters log every step of their own.
    logging.set_verbosity(logging.WARNING)
    std_logging.getLogger("tensorflow").setLevel(std_logging.WARNING)
    caches.turn_on()
    given = [x.value for x in (WEIGHTS, WORKDIR, CHECK) if x.value]
    if len(given) != 1:
        raise UsageError(
            f"exactly one of --weights, --workdir and --check is needed, got {len(given)}"
        )
    if CHECK.value:
        check_again(CHECK.value, IMAGES.value)
        return
    if not TO.value:
        raise UsageError(f"--to is needed, one of {', '.join(FORMATS)}")
    answer(
        load_model=lambda: load_model(
            given[0],
            MODEL.value,
            ema=EMA.value,
            architecture=ARCHITECTURE.value,
            preprocessing=PREPROCESSING.value,
        ),
        to=TO.value,
        output=OUTPUT.value,
        image_size=IMAGE_SIZE.value,
        batch_size=BATCH_SIZE.value,
        preprocess=PREPROCESS.value,
        quantize=QUANTIZE.value,
        images=IMAGES.value,
    )


if __name__ == "__main__":
    cli.run(main)
