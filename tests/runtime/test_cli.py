"""The door of every program, with nothing behind it: mistakes in flags and recipes."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# The real programs take seconds to start; tests/programs makes a mistake with them, too.
PROGRAM = """
from ml_collections import config_flags
from effnetv2_jax import cli
config = config_flags.DEFINE_config_file("config")
cli.run(lambda: print(config.value.epochs))
"""


def start(*arguments):
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_what_is_said_reaches_the_program():
    result = start("--config=configs/digits.py", "--config.epochs=3")
    assert (result.returncode, result.stdout, result.stderr) == (0, "3.0\n", "")


MISTAKES = {
    "--config.epoch=3": "unknown config field 'epoch': did you mean \"epochs\"",
    "--config.epochs=many": "many",
    "--config=configs/efficientnetv2.py:q": "got 'q'",
    "extra": "unexpected argument 'extra'",
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_a_mistake_is_one_sentence(argument):
    result = start("--config=configs/digits.py", "--config.epochs=3", argument)
    assert result.returncode == 2
    (sentence,) = result.stderr.splitlines()
    assert sentence.startswith("error: ")
    assert MISTAKES[argument] in sentence
    assert result.stdout == ""


def test_a_mistake_in_a_recipes_code_is_shown_where_it_is(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("def get_config():\n    return {}['epochs']\n")
    result = start(f"--config={recipe}")
    assert result.returncode != 0
    assert f'File "{recipe}", line 2, in get_config' in result.stderr
    assert "KeyError: 'epochs'" in result.stderr
