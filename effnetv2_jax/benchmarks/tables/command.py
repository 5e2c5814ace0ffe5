"""The paper's tables, ours beside theirs: ``python -m effnetv2_jax.benchmark tables --table=3``.

For every row the published figure, in how many sources it was found, ours, the ratio, and how ours
was obtained: counted (exact), measured here, estimated by XLA for a TPU that is not there, or not
run. ``--device=local`` measures on the devices that are there; ``--device=tpu:v3:4x4`` compiles
the training step for 32 TPUv3 cores (``pip install 'effnetv2_jax[tpu]'``), minutes for every step
that was not compiled before. With both, each says what it can. Needs neither TensorFlow nor clu nor
TFDS.
"""

import json
import sys
from collections.abc import Sequence

from absl import flags

from effnetv2_jax.benchmarks.markdown import document_path
from effnetv2_jax.benchmarks.tables.compare import compare, count_rows
from effnetv2_jax.benchmarks.tables.costs import (
    LOCAL,
    Costs,
    LocalCosts,
    Remembered,
    TpuCosts,
    topology_of,
)
from effnetv2_jax.benchmarks.tables.plans import PLANS
from effnetv2_jax.benchmarks.tables.printing import as_json, as_markdown
from effnetv2_jax.benchmarks.timing.measure import environment
from effnetv2_jax.benchmarks.timing.model_step import DTYPES
from effnetv2_jax.benchmarks.timing.timed_model import INFERENCE_DTYPES
from effnetv2_jax.models import get_spec
from effnetv2_jax.runtime.bars import Counter
from effnetv2_jax.runtime.errors import UsageError, unknown_name
from effnetv2_jax.runtime.files import write_atomically

ALL = "all"
QUICK_ROW_SECONDS = 2.0

TABLE = flags.DEFINE_list("table", [], f"Of {', '.join(PLANS)}; or all.")
DEVICE = flags.DEFINE_list("device", [LOCAL], "local, tpu: and a topology, or both.")
MODELS = flags.DEFINE_list("models", [], "Rows of these alone: names of list_models().")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images a local device instead of the paper's.", lower_bound=1
)
DTYPE = flags.DEFINE_string(
    "dtype", None, "Of local training; by default bfloat16, and float32 on a CPU."
)
INFERENCE = flags.DEFINE_list("inference_dtypes", [], "Of local inference; what suits the device.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Runs that are timed.", lower_bound=5)
ROW_SECONDS = flags.DEFINE_float(
    "row_seconds",
    120.0,
    "What would take a CPU longer is not run; 0 for no limit. A guess, made beforehand.",
    lower_bound=0.0,
)
COMPILE = flags.DEFINE_boolean(
    "compile", True, "Compile for TPUs what was not compiled before: minutes to an hour a step."
)
QUICK = flags.DEFINE_boolean("quick", False, "Only what takes seconds; --nocompile is part of it.")
JSON = flags.DEFINE_boolean("json", False, "JSON instead of Markdown.")
DOCUMENT = flags.DEFINE_string(
    "document", None, "A Markdown file that gets all of it as well, with a JSON file beside it."
)


def main() -> None:
    # All that can be checked at once is, before the first row takes minutes.
    names, models = _tables(), _models()
    topologies = [topology_of(device) for device in dict.fromkeys(DEVICE.value)]
    if not topologies:
        raise UsageError("--device must name local, or tpu: and a topology, or both")
    _check_dtypes()
    document = document_path(DOCUMENT.value)
    with Counter() as bar:
        sources = [Remembered(_costs(topology, bar)) for topology in topologies]
        rows = sum(count_rows(PLANS[name], sources, models) for name in names)
        if rows == 0:
            raise UsageError(f"none of {', '.join(models or ())} is in table {' or '.join(names)}")
        bar.start(rows)
        texts = [_heading(sources)]
        tables = []
        for name in names:
            table = compare(name, PLANS[name], sources, models=models, on_row=bar.next)
            if table.sections:
                tables.append(table)
                texts.append(as_markdown(table))
                if not JSON.value:
                    print("\n\n".join(texts[-1 if len(tables) > 1 else -2 :]), "\n", flush=True)
    found = json.dumps(
        {"environment": environment(), "tables": [as_json(table) for table in tables]}, indent=1
    )
    if JSON.value:
        print(found)
    if document is not None:
        write_atomically(document, "\n\n".join([_preface(), *texts]) + "\n")
        write_atomically(document.with_suffix(".json"), found + "\n")


def _tables() -> list[str]:
    asked = list(PLANS) if TABLE.value == [ALL] else TABLE.value
    if not asked:
        raise UsageError(f"--table must name one of {', '.join(PLANS)}, or all")
    for name in asked:
        if name not in PLANS:
            raise unknown_name("table", name, [*PLANS, ALL])
    return list(dict.fromkeys(asked))


def _models() -> list[str] | None:
    for model in MODELS.value:
        get_spec(model)
    return MODELS.value or None


def _check_dtypes() -> None:
    if DTYPE.value is not None and DTYPE.value not in DTYPES:
        raise unknown_name("dtype", DTYPE.value, DTYPES)
    for dtype in INFERENCE.value:
        if dtype not in INFERENCE_DTYPES:
            raise unknown_name("inference_dtypes", dtype, INFERENCE_DTYPES)


def _costs(topology: str | None, bar: Counter) -> Costs:
    if topology is not None:
        return TpuCosts(topology, compile_anew=COMPILE.value and not QUICK.value, on_phase=bar.say)
    return LocalCosts(
        batch_size=BATCH_SIZE.value,
        dtype=DTYPE.value,
        inference_dtypes=tuple(INFERENCE.value) or None,
        repeats=REPEATS.value,
        row_seconds=QUICK_ROW_SECONDS if QUICK.value else ROW_SECONDS.value or None,
        on_phase=bar.say,
    )


def _heading(sources: Sequence[Costs]) -> str:
    """On what all rows were found."""
    said = []
    for source in sources:
        if source.name == LOCAL:
            facts = ", ".join(f"{name} {value}" for name, value in environment().items())
            said.append(f"- local: {facts}; medians of {REPEATS.value} runs (fastest–slowest)")
        else:
            said.append(
                f"- {source.name}: nothing was run. XLA's estimate for one core of the training "
                "step (RMSProp, bfloat16, batch norm over 8 cores), which hardly counts "
                "collectives; what fits is the compiler's verdict"
            )
    return "\n".join(said)


def _preface() -> str:
    command = " ".join(["python -m effnetv2_jax.benchmark", *sys.argv[1:]])
    return (
        "# The paper's tables, ours beside theirs\n\n"
        f"Written by `{command}`. The published figures are those of Tan & Le 2021 (arXiv "
        "2104.00298); `sources` says in how many places we found one. What is counted is `exact`; "
        "a time is `measured here` or an `XLA estimate`, never one in the place of the other; what "
        "needs ImageNet and days of training is `not run`. Figures 1, 3 and 5 are drawn from it by "
        "`python -m effnetv2_jax.benchmark plots`."
    )
