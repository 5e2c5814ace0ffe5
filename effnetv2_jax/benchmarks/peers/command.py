"""Side by side with what people would use instead: ``python -m effnetv2_jax.benchmark peers``.

Times our training step and our inference against Keras on TensorFlow, Keras on JAX, and timm in
PyTorch, eager and compiled: the same network, image size, batch, dtype and threads, on noise. Each
runs in a process of its own; they take turns, one at a time, while all the others wait. Who is not
installed becomes a row that says so; torch usually lives in an environment of its own, whose
interpreter ``--torch_python`` names. On a GPU all use one, the first; a TPU belongs to one process
at a time, so that nobody stands beside us there.
"""

import json
import os
import shutil
import sys
from typing import Any

from absl import flags

from effnetv2_jax.benchmarks.peers.contenders import CONTENDERS, OURS, PEERS
from effnetv2_jax.benchmarks.peers.race import WHATS, Task, race
from effnetv2_jax.benchmarks.peers.table import as_json, as_markdown
from effnetv2_jax.benchmarks.timing.model_step import DTYPES
from effnetv2_jax.models import get_spec
from effnetv2_jax.runtime.bars import spinner
from effnetv2_jax.runtime.errors import UsageError, unknown_name

MODEL = flags.DEFINE_list("model", ["efficientnetv2-b0"], "Names of list_models().")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 128, "Side in px.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images a step.", lower_bound=1)
DTYPE = flags.DEFINE_string("dtype", "float32", "Of the computation: float32 or bfloat16.")
THREADS = flags.DEFINE_integer(
    "threads", None, "Of each; by default as many as this process has cores.", lower_bound=1
)
REPEATS = flags.DEFINE_integer("repeats", 5, "Turns of each.", lower_bound=5)
STEPS = flags.DEFINE_integer(
    "steps", None, "Of a turn; by default as many as take about a second.", lower_bound=1
)
PEERS_FLAG = flags.DEFINE_list("peers", list(PEERS), f"Beside ours: {', '.join(PEERS)}.")
WHAT = flags.DEFINE_list("what", list(WHATS), f"Of {', '.join(WHATS)}.")
TORCH_PYTHON = flags.DEFINE_string(
    "torch_python", None, "Interpreter that has torch and timm; by default this one."
)
JSON = flags.DEFINE_boolean("json", False, "JSON instead of tables.")

# Variables that change times, and that all contenders find as they are here.
TELLING = (
    "GLIBC_TUNABLES",
    "JAX_PLATFORMS",
    "LD_PRELOAD",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "OMP_WAIT_POLICY",
    "XLA_FLAGS",
)


def main() -> None:
    # All that can be checked at once is, before the first contender takes minutes.
    for name in MODEL.value:
        get_spec(name)
    whats = _chosen("thing to time", "what", WHAT.value, WHATS)
    peers = _chosen("peer", "peers", PEERS_FLAG.value, PEERS, may_be_empty=True)
    if DTYPE.value not in DTYPES:
        raise unknown_name("dtype", DTYPE.value, DTYPES)
    threads, torch_python = _threads(), _torch_python()
    contenders = {name: CONTENDERS[name] for name in (OURS, *peers)}
    pythons = {
        name: torch_python if contender.lives_elsewhere else sys.executable
        for name, contender in contenders.items()
    }
    environment = {name: os.environ[name] for name in TELLING if os.environ.get(name)}
    found: list[dict[str, Any]] = []
    for number, model in enumerate(MODEL.value):
        task = Task(model, IMAGE_SIZE.value, BATCH_SIZE.value, DTYPE.value, threads)
        with spinner(f"{model}:") as show:
            entries = race(
                contenders,
                task,
                whats=whats,
                repeats=REPEATS.value,
                steps=STEPS.value,
                pythons=pythons,
                on_phase=show,
            )
        if JSON.value:
            found.append(as_json(task, entries, whats))
            continue
        if number:
            print()
        text = as_markdown(
            task,
            entries,
            contenders=contenders,
            whats=whats,
            repeats=REPEATS.value,
            environment=environment,
        )
        print(text, flush=True)
    if JSON.value:
        print(json.dumps({"environment": environment, "runs": found}, indent=2))


def _chosen(
    kind: str, flag: str, names: list[str], allowed: tuple[str, ...], *, may_be_empty: bool = False
) -> list[str]:
    """The names once each, in the order of the table."""
    for name in names:
        if name not in allowed:
            raise unknown_name(kind, name, allowed)
    if not names and not may_be_empty:
        raise UsageError(f"--{flag} must name at least one of {', '.join(allowed)}")
    return [name for name in allowed if name in names]


def _threads() -> int:
    cores = len(os.sched_getaffinity(0))
    if THREADS.value is not None and THREADS.value > cores:
        raise UsageError(
            f"--threads must be from 1 to {cores}, the cores of this process, got {THREADS.value}"
        )
    return THREADS.value or cores


def _torch_python() -> str:
    if TORCH_PYTHON.value is None:
        return sys.executable
    found = shutil.which(os.path.expanduser(TORCH_PYTHON.value))
    if found is None:
        raise UsageError(f"--torch_python must be a program, got {TORCH_PYTHON.value!r}")
    # Not resolved: a virtual environment's interpreter is a link, and means its folder.
    return os.path.abspath(found)
