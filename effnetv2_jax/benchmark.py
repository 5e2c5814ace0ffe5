"""Measures this code on this machine: ``python -m effnetv2_jax.benchmark NAME --FLAG=VALUE …``.

``NAME --help`` lists a benchmark's flags. On a shared machine only ratios within one run count.
"""

import importlib
import sys

from absl import app, flags

from effnetv2_jax.runtime.cli import refuse
from effnetv2_jax.runtime.errors import UsageError, unknown_name

# Modules with a ``main``; imported when asked for, as ``input`` and ``start`` need TensorFlow.
BENCHMARKS = {
    "all": "effnetv2_jax.benchmarks.together",
    "checkpoint": "effnetv2_jax.benchmarks.timing.checkpointing",
    "input": "effnetv2_jax.benchmarks.timing.input",
    "peers": "effnetv2_jax.benchmarks.peers.command",
    "plots": "effnetv2_jax.benchmarks.tables.plots",
    "start": "effnetv2_jax.benchmarks.timing.start",
    "step": "effnetv2_jax.benchmarks.timing.step",
    "tables": "effnetv2_jax.benchmarks.tables.command",
    "tpu": "effnetv2_jax.benchmarks.tpu.command",
}
HELP = ("-h", "--help", "--helpfull")


def main() -> None:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in HELP:
        print(f"{__doc__}\nNAME is one of: {', '.join(BENCHMARKS)}")
        return
    if name not in BENCHMARKS:
        refuse(str(unknown_name("benchmark", name, BENCHMARKS)))
    module = importlib.import_module(BENCHMARKS[name])
    if set(HELP) & set(arguments):
        print(f"{module.__doc__}\n{flags.FLAGS.module_help(module)}")
        return

    def guarded(argv: list[str]) -> None:
        if argv[1:]:
            refuse(f"unexpected argument {argv[1]!r}: every argument is a --flag")
        try:
            module.main()
        except UsageError as error:
            refuse(str(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)  # 128 + SIGINT, as shells count

    app.run(guarded, argv=[f"{sys.argv[0]} {name}", *arguments])


if __name__ == "__main__":
    main()
