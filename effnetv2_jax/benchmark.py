"""Measures this code on this machine: ``python -m effnetv2_jax.benchmark NAME --FLAG=VALUE …``.

``NAME --help`` lists a benchmark's flags. On a shared machine only ratios within one run count.
"""

import importlib
import sys

from absl import flags

from effnetv2_jax.runtime import cli
from effnetv2_jax.runtime.errors import unknown_name
from effnetv2_jax.runtime.extras import MissingExtraError, hush_tensorflow

BENCHMARKS = {
    "all": "all",
    "checkpoint": "timing.checkpoint",
    "export": "peers.export",
    "input": "timing.input",
    "peers": "peers.peers",
    "plots": "tables.plots",
    "start": "timing.start",
    "step": "timing.step",
    "tables": "tables.tables",
    "tpu": "tpu.tpu",
}
"""The module of each benchmark in ``effnetv2_jax.benchmarks``, with its flags and a ``main``.

A module is imported only when it is asked for: some need TensorFlow, and flags of two may collide.
"""
HELP = ("-h", "--help", "--helpfull")


def main() -> None:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in HELP:
        print(f"{__doc__}\nNAME is one of: {', '.join(BENCHMARKS)}")
        return
    if name not in BENCHMARKS:
        cli.refuse(str(unknown_name("benchmark", name, BENCHMARKS)))
    hush_tensorflow(2)
    try:
        module = importlib.import_module(f"effnetv2_jax.benchmarks.{BENCHMARKS[name]}")
    except MissingExtraError as error:
        cli.refuse(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("effnetv2_jax"):
            raise
        cli.refuse(
            f"benchmark {name} needs {error.name}, which is not installed: "
            "pip install 'effnetv2_jax[train]'"
        )
    if set(HELP) & set(arguments):
        print(f"{module.__doc__}\n{flags.FLAGS.module_help(module)}")
        return

    sys.argv = [f"{sys.argv[0]} {name}", *arguments]
    cli.run(module.main)


if __name__ == "__main__":
    main()
