"""Builds runs from mistaken command lines, one after the other; prints how each ended.

Run by test_mistaken_configs.py in a process of its own: a case that hangs ends the process.
"""

import contextlib
import faulthandler
import io
import random
import re
import sys
import time
import traceback

import numpy as np
from absl import flags

from configs import digits
from effnetv2_jax.runtime import cli, recipe
from effnetv2_jax.runtime.config import NUMBERS, build
from effnetv2_jax.runtime.errors import UsageError
from tests import tiny_run

SECONDS = 10.0
"""The time of the processor that a case may take, from the flags to the first batch."""

CLOCK_SECONDS = 120.0
"""The time by the clock that a case may take: others may work on the machine."""

BASE = ("--config.data.name=synthetic", "--config.data.augmentation=none")

LARGEST_BATCH = 1 << 26
"""The bytes of the largest batch that is really read: memory is not what is tested."""

NUMBERS_TO_TRY = (
    *(
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "1",
        "2",
        "3",
        "16",
        "0.5",
        "1.5",
        "1e30",
        "-1e-30",
        "1e400",
    ),
    *("99999999999999999999", "0x10", "1_0", "½", "١", "", " ", "abc", "None", "True", "(1,)"),
)
TEXTS_TO_TRY = (
    "",
    "none",
    "adam",
    "sgd",
    "cosine",
    "train[:0]",
    "train[:10%]",
    "ü",
    "a" * 300,
    "{}",
)
TUPLES_TO_TRY = (
    "()",
    "(16,16)",
    "(32,16)",
    "(0.5,0.5)",
    "(1,2,3)",
    "16",
    "((",
    "('a','b')",
    "[1,2]",
)


def override(random: random.Random) -> str:
    """Returns an argument that sets a field, maybe one that is not there."""
    fields = recipe.flatten(digits.get_config().to_dict())
    extra = ("optimizer.options.b1", "evals.x.split", "evals.x.image_size", "evals.eval.weights")
    field = random.choice([*fields, *extra])
    kind = random.random()
    if kind < 0.15:  # a slip of the finger
        place = random.randrange(len(field))
        field = field[:place] + random.choice("abz._-[") + field[place + random.randrange(2) :]
    rule = NUMBERS.get(field)
    pool = NUMBERS_TO_TRY if rule and not rule.names else TEXTS_TO_TRY
    if isinstance(fields.get(field), list):
        pool = TUPLES_TO_TRY
    if kind > 0.9:
        pool = (*NUMBERS_TO_TRY, *TEXTS_TO_TRY, *TUPLES_TO_TRY)
    return f"--config.{field}={random.choice(pool)}"


def start(arguments: list[str]) -> str:
    """Builds the run of a command line, and reads its first batch."""
    for name in [x for x in flags.FLAGS if x.split(".")[0] == "config"]:
        delattr(flags.FLAGS, name)
    sys.argv = ["train", *arguments]
    flag = recipe.define_flag()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            cli.parse_flags(sys.argv)
    except SystemExit:
        return one_sentence(printed.getvalue().removeprefix("error: ").strip())
    try:
        run = build(recipe.checked(flag.value))
        assert np.isfinite(run.learning_rate(1))
        stage = run.stages[0]
        if 3 * stage.image_size**2 * stage.batch_size < LARGEST_BATCH:
            next(run.train_batches(stage, 0))
    except UsageError as error:
        return one_sentence(cli.one_line(error))
    return "built"


def one_sentence(text: str) -> str:
    assert text
    assert len(text.splitlines()) == 1
    # Sentences of other libraries about their own insides.
    assert not re.search("malformed|SyntaxError|object at 0x|<class", text), text
    return f"refused: {text}"


def main(count: int, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(count):
        changes = [override(generator) for _ in range(generator.choice((1, 1, 2, 3)))]
        print(changes, flush=True)
        faulthandler.dump_traceback_later(CLOCK_SECONDS, exit=True)
        started = time.process_time()
        try:
            end = start([*tiny_run.CONFIG, *BASE, *changes])
            assert time.process_time() - started < SECONDS
            print(end, flush=True)
        except Exception:
            print(traceback.format_exc(), flush=True)
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
