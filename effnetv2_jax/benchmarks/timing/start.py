"""Times how a training program starts: ``python -m effnetv2_jax.benchmark start --config=FILE``.

Runs ``effnetv2_jax.train`` in processes of its own, each in a new workdir: cold, with nothing in
the cache of compiled programs, then warm, with what the first cold run left there. Its log says
when the first step came, counted from the start of the process, and how long the borders between
stages stood still. The first run of both kinds goes to its end, for the borders (``--noborders``:
none does); the others are ended after their first step. The data set has to be on disk before.
"""

import importlib.util
import json
import sys

from absl import flags

from effnetv2_jax.benchmarks.timing.measure import environment
from effnetv2_jax.benchmarks.timing.start_runs import as_json, as_markdown, run_all
from effnetv2_jax.runtime.bars import spinner
from effnetv2_jax.runtime.errors import UsageError

CONFIG = flags.DEFINE_string("config", "configs/digits.py", "Recipe, as of the training program.")
FIELDS = flags.DEFINE_multi_string(
    "field", [], "FIELD=VALUE, a field of the config to change, such as epochs=4; may be repeated."
)
COLD = flags.DEFINE_integer("cold", 1, "Cold starts.", lower_bound=1)
WARM = flags.DEFINE_integer("warm", 5, "Warm starts.", lower_bound=1)
BORDERS = flags.DEFINE_boolean("borders", True, "One run of each kind goes to its end.")
JSON = flags.DEFINE_boolean("json", False, "JSON instead of tables.")

NEEDS = ("tensorflow", "tensorflow_datasets", "clu")
"""Libraries of the training program that other benchmarks do without."""


def main() -> None:
    for library in NEEDS:
        if importlib.util.find_spec(library) is None:
            raise UsageError(
                f"benchmark start runs the training program, which needs {library}, and that is "
                "not installed"
            )
    command = [
        *(sys.executable, "-m", "effnetv2_jax.train", f"--config={CONFIG.value}"),
        *(f"--config.{field}" for field in FIELDS.value),
    ]
    with spinner("start:") as show:
        found = run_all(
            command, cold=COLD.value, warm=WARM.value, borders=BORDERS.value, on_run=show
        )
    if JSON.value:
        what = {"environment": environment(), "config": CONFIG.value, "fields": FIELDS.value}
        print(json.dumps(what | as_json(found), indent=2))
        return
    print(" ".join([CONFIG.value, *FIELDS.value]))
    print(", ".join(f"{name} {value}" for name, value in environment().items()))
    print(f"\n{as_markdown(found)}")
