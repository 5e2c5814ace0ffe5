"""The door of every program with a tiny program behind it: mistakes in flags and recipes."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# The real programs take seconds to start; tests/programs makes mistakes with them as well.
PROGRAM = """
from effnetv2_jax.runtime import cli, recipe
flag = recipe.define_flag()
def main():
    config = recipe.checked(flag.value)
    print(config.epochs, config.optimizer.options.to_dict(), config.evals.to_dict())
cli.run(main)
"""


def start(*arguments, program=PROGRAM, **changes):
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | changes, capture_output=True, text=True, check=False
    )


def test_fields_and_entries_with_free_names_reach_the_program():
    result = start(
        "--config=configs/digits.py",
        "--config.epochs=3",
        "--config.optimizer.options.b2=0.95",
        "--config.optimizer.options.nesterov",
        "--config.evals.eval.every_steps=10",
        "--config.evals.other.split=train[80%:]",
        "--config.evals.other.weights=raw",
    )
    expected = (
        "3.0 {'b2': 0.95, 'nesterov': True} "
        "{'eval': {'every_steps': 10}, 'other': {'split': 'train[80%:]', 'weights': 'raw'}}\n"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, expected, "")


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", r"caf\xe9 \udce9"), ("utf-8", r"café \udce9")]
)
def test_what_the_output_cannot_encode_is_escaped(encoding, shown):
    program = "from effnetv2_jax.runtime import cli\n" + r"cli.run(lambda: print('caf\xe9 \udce9'))"
    result = start(program=program, PYTHONIOENCODING=encoding)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{shown}\n", "")


MISTAKES = {
    "--config.epoch=3": "unknown config field 'epoch': did you mean epochs or",
    "--config.optimizer.nam=sgd": "unknown config field 'optimizer.nam': did you mean "
    "optimizer.name",
    "--config.optimizer.lr=0.1": "unknown config field 'optimizer.lr': did you mean "
    "optimizer.learning_rate or optimizer.learning_rate_schedule? allowed are optimizer.clip_norm,",
    "--config.weight_decay=0.1": "'weight_decay': did you mean optimizer.weight_decay",
    "--config.optimzer.options.b2=3": "unknown section of the config 'optimzer.options': did you "
    "mean optimizer",
    "--config.epochs.x=3": "unknown section of the config 'epochs': allowed are checkpoint, data,",
    "--config.optimizer.decay=cosine": "config field 'optimizer.decay' is now called "
    "'optimizer.learning_rate_schedule'",
    "--config.schedule.image_size[0]=32": "config field 'schedule.image_size[0]' must be words of "
    "letters, digits and underscores with dots between; a tuple is set as a whole, as in",
    "--config.evals.a-b.split=test": "config field 'evals.a-b.split' must be words of letters,",
    "--config.epochs=many": "epochs must be a number, got 'many'",
    "--config.batch_size=1.5": "batch_size must be a whole number, got '1.5'",
    "--config.data.flip=maybe": "data.flip must be true or false, got 'maybe'",
    "--config.optimizer=adam": "optimizer must be a dictionary of fields, got 'adam'",
    "--config=configs/efficientnetv2.py:q": "got 'q'",
    "--config=configs/none.py": "config file 'configs/none.py' does not exist or cannot be read",
    "--cnfig=configs/digits.py": "unknown flag --cnfig: did you mean --config?",
    "extra": "unexpected argument 'extra'",
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_a_mistake_is_one_sentence(argument):
    result = start("--config=configs/digits.py", argument)
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


LAUNCHER = """
import sys
from effnetv2_jax.runtime import cli
def main(arguments):
    print(arguments, "jax" in sys.modules)
    return 3
cli.run(main, takes_arguments=True, unknown_flag_hint="; the program's flags come after --")
"""


def test_a_launcher_passes_arguments_on_without_jax():
    result = start("--", "a", "--b=c", program=LAUNCHER)
    assert (result.returncode, result.stdout) == (3, "['a', '--b=c'] False\n")
    result = start("--b=c", program=LAUNCHER)
    assert result.returncode == 2
    assert result.stderr.endswith(
        "flag --b: --help lists the flags; the program's flags come after --\n"
    )


@pytest.mark.parametrize("flag", ["--help", "-helpshort"])
def test_help_that_was_asked_for_is_no_failure(flag):
    result = start(flag)
    assert result.returncode == 0
    assert "--config" in result.stdout


def test_flags_that_are_needed_are_named_with_their_meaning():
    result = start(
        program=PROGRAM.replace(
            "def main",
            """
from absl import flags
flags.DEFINE_enum("kind", None, ["a", "b"], "Kind of run. More is in the docs.", required=True)
def main""",
        )
    )
    assert (result.returncode, result.stderr) == (
        2,
        "error: these flags are needed: --config (recipe, such as configs/digits.py), "
        "--kind (kind of run)\n",
    )
