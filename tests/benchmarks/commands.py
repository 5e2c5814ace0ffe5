"""Runs benchmarks as commands. Each needs a process of its own, as the flags of two may collide."""

import json
import os
import subprocess
import sys

_REFUSE = """
import importlib, json, sys
from absl import flags
from absl.testing import flagsaver
from effnetv2_jax.runtime.errors import UsageError

module = importlib.import_module(f"effnetv2_jax.benchmarks.{sys.argv[1]}")
flags.FLAGS.mark_as_parsed()
sentences = []
for values in json.loads(sys.argv[2]):
    with flagsaver.as_parsed(**values):
        try:
            module.main()
            sentences.append("")
        except UsageError as error:
            sentences.append(str(error))
print(json.dumps(sentences))
"""


def run(*arguments, without=(), **variables):
    """Runs a benchmark.

    Args:
        *arguments: The benchmark's name and its flags.
        without: Libraries that it does not find.
        **variables: Environment variables.
    """
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({list(without)!r})); "
        "runpy.run_module('effnetv2_jax.benchmark', run_name='__main__', alter_sys=True)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=os.environ | variables,
    )


def refusals(module, values):
    """Returns what a command says to each of several sets of flags, all in one process."""
    done = subprocess.run(
        [sys.executable, "-c", _REFUSE, module, json.dumps(values)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *printed, sentences = done.stdout.splitlines()
    assert not printed
    return json.loads(sentences)
