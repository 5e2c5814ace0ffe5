"""Print the paper's tables with ours beside: ``python -m effnetv2_jax.benchmark tables --table=3``.

Every row has the published figure, the number of sources in which it was found, our figure, the
ratio, and how our figure was found: counted (exact), measured here, estimated by XLA for a TPU that
is not attached, or not run. ``--device=local`` measures on the devices of this machine.
``--device=tpu:v3:4x4`` compiles the training step for 32 TPUv3 cores (``pip install
'effnetv2_jax[tpu]'``), which takes minutes for every new step. Without libtpu, it reads what was
compiled before, and says if that may be older than the code. With both devices, each gives the
figures that it can. Needs neither TensorFlow nor clu nor TFDS.
"""

import json
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from effnetv2_jax.benchmarks.markdown import document_path
from effnetv2_jax.benchmarks.tables.comparison import compare, count_rows
from effnetv2_jax.benchmarks.tables.costs import LOCAL, Costs, LocalCosts, TpuCosts, topology_of
from effnetv2_jax.benchmarks.tables.plans import PLANS
from effnetv2_jax.benchmarks.tables.printing import as_json, as_markdown
from effnetv2_jax.benchmarks.timing.measure import environment, environment_text
from effnetv2_jax.benchmarks.timing.timed_model import INFERENCE_DTYPES
from effnetv2_jax.models import get_spec
from effnetv2_jax.runtime.bars import Counter
from effnetv2_jax.runtime.errors import UsageError, unknown_name
from effnetv2_jax.runtime.files import write_atomically
from effnetv2_jax.training.build import DTYPES

QUICK_ROW_SECONDS = 2.0

TABLE = flags.DEFINE_list("table", [], f"Tables: {', '.join(PLANS)}; or all.")
DEVICE = flags.DEFINE_list("device", [LOCAL], "local, or tpu: and a topology, or both.")
MODELS = flags.DEFINE_list("models", [], "Models, names of list_models(), to leave out other rows.")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images per local device. Default: the paper's number.", lower_bound=1
)
DTYPE = flags.DEFINE_string(
    "dtype", None, "Dtype of local training. Default: bfloat16, or float32 on a CPU."
)
INFERENCE = flags.DEFINE_list(
    "inference_dtypes", [], "Dtypes of local inference. Default: what suits the device."
)
REPEATS = flags.DEFINE_integer("repeats", 5, "Number of runs that are timed.", lower_bound=5)
ROW_SECONDS = flags.DEFINE_float(
    "row_seconds",
    120.0,
    "Estimated seconds above which a row is not run on a CPU. 0 means no limit.",
    lower_bound=0.0,
)
COMPILE = flags.DEFINE_boolean(
    "compile", True, "Compile new steps for TPUs, which takes minutes to an hour each."
)
RECORDS = flags.DEFINE_string(
    "records", None, "File of steps that were compiled before. Default: one in the cache folder."
)
QUICK = flags.DEFINE_boolean("quick", False, "Run only what takes seconds; implies --nocompile.")
JSON = flags.DEFINE_boolean("json", False, "Print JSON instead of Markdown.")
DOCUMENT = flags.DEFINE_string(
    "document", None, "Markdown file that gets the output as well, with a JSON file beside it."
)


def main() -> None:
    # Every check comes before the first row, which takes minutes.
    names = list(PLANS) if TABLE.value == ["all"] else list(dict.fromkeys(TABLE.value))
    if not names:
        raise UsageError(f"--table must name one of {', '.join(PLANS)}, or all")
    for name in names:
        if name not in PLANS:
            raise unknown_name("table", name, [*PLANS, "all"])
    models = MODELS.value or None
    for model in MODELS.value:
        get_spec(model)
    topologies = [topology_of(device) for device in dict.fromkeys(DEVICE.value)]
    if not topologies:
        raise UsageError("--device must name local, or tpu: and a topology, or both")
    if DTYPE.value is not None and DTYPE.value not in DTYPES:
        raise unknown_name("dtype", DTYPE.value, DTYPES)
    for dtype in INFERENCE.value:
        if dtype not in INFERENCE_DTYPES:
            raise unknown_name("inference_dtypes", dtype, INFERENCE_DTYPES)
    document = document_path(DOCUMENT.value)
    with Counter() as bar:
        sources = [_costs(topology, bar) for topology in topologies]
        rows = sum(count_rows(PLANS[name], sources, models) for name in names)
        if rows == 0:
            raise UsageError(f"none of {', '.join(models or ())} is in table {' or '.join(names)}")
        bar.start(rows)
        texts = [_heading(sources)]
        tables = []
        for name in names:
            sections = compare(PLANS[name], sources, models=models, on_row=bar.next)
            if sections:
                tables.append(as_json(PLANS[name], sections))
                texts.append(as_markdown(PLANS[name], sections))
                if not JSON.value:
                    print("\n\n".join(texts[-1 if len(tables) > 1 else -2 :]), "\n", flush=True)
    found = json.dumps({"environment": environment(), "tables": tables}, indent=1)
    if JSON.value:
        print(found)
    if document is not None:
        write_atomically(document, "\n\n".join([_preface(), *texts]) + "\n")
        write_atomically(document.with_suffix(".json"), found + "\n")


def _costs(topology: str | None, bar: Counter) -> Costs:
    if topology is not None:
        return TpuCosts(
            topology,
            compile_new=COMPILE.value and not QUICK.value,
            records_file=pathlib.Path(RECORDS.value) if RECORDS.value else None,
            on_phase=bar.say,
        )
    return LocalCosts(
        batch_size=BATCH_SIZE.value,
        dtype=DTYPE.value,
        inference_dtypes=tuple(INFERENCE.value),
        repeats=REPEATS.value,
        row_seconds=QUICK_ROW_SECONDS if QUICK.value else ROW_SECONDS.value,
        on_phase=bar.say,
    )


def _heading(sources: Sequence[Costs]) -> str:
    """Returns the devices and versions of all rows."""
    local = f"{environment_text()}; medians of {REPEATS.value} runs (fastest–slowest)"
    tpu = (
        "nothing was run. XLA's estimate for one core of the training step (RMSProp, bfloat16, "
        "batch norm over 8 cores), which hardly counts collectives; what fits is the compiler's "
        "verdict"
    )
    names = [source.name for source in sources]
    return "\n".join(f"- {name}: {local if name == LOCAL else tpu}" for name in names)


def _preface() -> str:
    command = " ".join(["python -m effnetv2_jax.benchmark tables", *sys.argv[1:]])
    return f"""# The paper's tables, ours beside theirs

Written by `{command}`. The published figures are those of Tan & Le 2021 (arXiv 2104.00298); \
`sources` says in how many places we found one. What is counted is `exact`; a time is `measured \
here` or an `XLA estimate`, never one in the place of the other; what needs ImageNet and days of \
training is `not run`. Figures 1, 3 and 5 are drawn from it by `python -m effnetv2_jax.benchmark \
plots`."""
