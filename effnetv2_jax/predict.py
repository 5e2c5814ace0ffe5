"""What a network sees in images: ``python -m effnetv2_jax.predict --weights=PATH_OR_NAME IMG …``.

IMG is an image file, a folder (all images below it), or ``-``: an image, or names of files, one a
line, from standard input. Predictions go to standard output, everything else to standard error. The
exit code is 1 where some of the images could not be decoded.
"""

from effnetv2_jax.runtime import extras

extras.need_for_program("train")

import functools
import logging as std_logging
import signal
import sys

from absl import flags, logging

from effnetv2_jax.predictions.request import Request, answer
from effnetv2_jax.runtime import caches as compile_cache
from effnetv2_jax.runtime import cli
from effnetv2_jax.runtime.signals import leave
from effnetv2_jax.weights import load_model

WEIGHTS = flags.DEFINE_string(
    "weights", None, "A file, a run's workdir, or a name of published weights.", required=True
)
MODEL = flags.DEFINE_string("model", None, "A name of list_models(), where the weights do not say.")
ARCHITECTURE = flags.DEFINE_string("architecture", None, "Of the weights, where they do not say.")
EMA = flags.DEFINE_bool("ema", True, "Use the averaged weights and batch statistics.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Side in px; the network's by default.")
PREPROCESSING = flags.DEFINE_string(
    "preprocessing", None, "A name in effnetv2_jax/preprocessing.py; the network's by default."
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images the device works on at a time.")
TOP = flags.DEFINE_integer("top", None, "Classes of an image; 5 by default, or all if fewer.")
FORMAT = flags.DEFINE_string("format", "table", "table, or json: one object a line.")
PICTURE = flags.DEFINE_string("picture", None, "Draw images and classes to this file, e.g. a.png.")


def main(arguments: list[str]) -> None:
    # A person reads this, not a log: without time, thread and file.
    logging.get_absl_handler().setFormatter(std_logging.Formatter("%(message)s"))
    flags.FLAGS["logtostderr"].value = True  # a bar stands in for stderr and lets lines pass
    compile_cache.turn_on()
    request = Request(
        load_model=functools.partial(
            load_model,
            WEIGHTS.value,
            MODEL.value,
            ema=EMA.value,
            architecture=ARCHITECTURE.value,
        ),
        image_size=IMAGE_SIZE.value,
        preprocessing=PREPROCESSING.value,
        batch_size=BATCH_SIZE.value,
        top=TOP.value,
        format=FORMAT.value,
        picture=PICTURE.value,
    )
    try:
        code = answer(request, arguments, sys.stdin.buffer, sys.stdout)
    except BrokenPipeError:
        leave(128 + signal.SIGPIPE)  # who reads has seen enough; the code that shells expect
    sys.exit(code)


if __name__ == "__main__":
    cli.run(main, takes_arguments=True)
