"""Time our code beside Keras and timm: ``python -m effnetv2_jax.benchmark peers``.

Times our training step and our inference, and those of Keras on TensorFlow, Keras on JAX, and timm
in PyTorch, eager and compiled: the same network, image size, batch, dtype and threads, on noise.
Each runs in a process of its own. They take turns, one at a time, while all the others wait. A
library that is not installed has a row that says so. torch usually lives in another environment,
whose interpreter ``--torch_python`` names. On a machine with GPUs, all use the first one. A TPU
belongs to one process at a time, so nothing stands beside our code there.
"""

import json
import os
import sys
from typing import Any

from absl import flags

from effnetv2_jax.benchmarks.peers.contenders import CONTENDERS, OURS, PEERS, find_python
from effnetv2_jax.benchmarks.peers.race import WHATS, Task, race
from effnetv2_jax.benchmarks.peers.table import as_json, as_markdown
from effnetv2_jax.models import get_spec
from effnetv2_jax.runtime.bars import spinner
from effnetv2_jax.runtime.errors import UsageError, unknown_name
from effnetv2_jax.training.build import DTYPES

MODEL = flags.DEFINE_list("model", ["efficientnetv2-b0"], "Models, names of list_models().")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 128, "Image size in px.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Number of images per step.", lower_bound=1)
DTYPE = flags.DEFINE_string("dtype", "float32", "Dtype of the computation: float32 or bfloat16.")
THREADS = flags.DEFINE_integer(
    "threads", None, "Threads of each. Default: as many as this process has cores.", lower_bound=1
)
REPEATS = flags.DEFINE_integer("repeats", 5, "Number of turns of each.", lower_bound=5)
STEPS = flags.DEFINE_integer(
    "steps", None, "Steps per turn. Default: as many as take about a second.", lower_bound=1
)
PEERS_FLAG = flags.DEFINE_list("peers", list(PEERS), "What is timed beside our code.")
WHAT = flags.DEFINE_list("what", list(WHATS), f"Things to time: {', '.join(WHATS)}.")
TORCH_PYTHON = flags.DEFINE_string(
    "torch_python", None, "Interpreter that has torch and timm. Default: this one."
)
JSON = flags.DEFINE_boolean("json", False, "Print JSON instead of tables.")

# Environment variables that change times. All contenders find them as they are here.
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
    # Every check comes before the first contender, which takes minutes.
    for name in MODEL.value:
        get_spec(name)
    whats = _chosen("thing to time", WHAT.value, WHATS)
    if not whats:
        raise UsageError(f"--what must name at least one of {', '.join(WHATS)}")
    peers = _chosen("peer", PEERS_FLAG.value, PEERS)
    if DTYPE.value not in DTYPES:
        raise unknown_name("dtype", DTYPE.value, DTYPES)
    cores = len(os.sched_getaffinity(0))
    threads, torch_python = THREADS.value or cores, find_python(TORCH_PYTHON.value)
    if threads > cores:
        raise UsageError(
            f"--threads must be from 1 to {cores}, the cores of this process, got {threads}"
        )
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
            task, entries, whats=whats, repeats=REPEATS.value, environment=environment
        )
        print(text, flush=True)
    if JSON.value:
        print(json.dumps({"environment": environment, "runs": found}, indent=2))


def _chosen(kind: str, names: list[str], allowed: tuple[str, ...]) -> list[str]:
    """Returns each name once, in the order of the table."""
    for name in names:
        if name not in allowed:
            raise unknown_name(kind, name, allowed)
    return [name for name in allowed if name in names]
