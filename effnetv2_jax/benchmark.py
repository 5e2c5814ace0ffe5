"""Measures this code on this machine: ``python -m effnetv2_jax.benchmark NAME --FLAG=VALUE …``.

``NAME --helpfull`` lists a benchmark's flags. On a shared machine only ratios within one run count.
"""

import importlib
import sys

from absl import app

from effnetv2_jax.errors import UsageError, unknown_name

# Modules with a ``main``; imported when asked for, as only ``input`` needs TensorFlow.
BENCHMARKS = {
    "input": "effnetv2_jax.benchmarks.input_pipeline",
    "step": "effnetv2_jax.benchmarks.train_step",
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "--helpfull"):
        print(f"{__doc__}\nNAME is one of: {', '.join(BENCHMARKS)}")
        return
    if name not in BENCHMARKS:
        sys.exit(f"error: {unknown_name('benchmark', name, BENCHMARKS)}")
    module = importlib.import_module(BENCHMARKS[name])

    def guarded(argv: list[str]) -> None:
        if argv[1:]:
            sys.exit(f"error: unexpected argument {argv[1]!r}: every argument is a --flag")
        try:
            module.main()
        except UsageError as error:
            sys.exit(f"error: {error}")

    app.run(guarded, argv=[f"{sys.argv[0]} {name}", *sys.argv[2:]])


if __name__ == "__main__":
    main()
