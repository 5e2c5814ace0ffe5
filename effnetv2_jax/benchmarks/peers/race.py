"""Lets contenders run in turn, one at a time, while all the others wait."""

import contextlib
import dataclasses
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from effnetv2_jax.benchmarks.peers.contenders import Contender
from effnetv2_jax.benchmarks.timing.measure import Timing, turns
from effnetv2_jax.runtime.workers import Worker, WorkerError, import_path

WHATS = ("training", "inference")

SETTLE_SECONDS = 0.2
"""The pause between two turns, in which threads that spin while they wait go to sleep."""

MAX_REASON = 200
"""The number of an error's characters that a table has room for."""

WORKER = pathlib.Path(__file__).resolve().with_name("worker.py")


@dataclasses.dataclass(frozen=True)
class Task:
    """The task of all contenders.

    Attributes:
        model: A name of ``list_models()``.
        image_size: The side of the images in px.
        batch_size: The number of images per step.
        dtype: The dtype of the computation, ``float32`` or ``bfloat16``.
        threads: The number of threads that each may use, on as many cores.
    """

    model: str
    image_size: int
    batch_size: int
    dtype: str
    threads: int


@dataclasses.dataclass(frozen=True)
class Result:
    """A contender's result at one thing.

    Attributes:
        way: The fastest of its ways to run.
        first_seconds: The time to build the network, compile it, and run the first step.
        steps: The number of steps per turn.
        timing: The seconds of one step, a mean over each turn.
        idle_share: The share of a core that its process took while others ran.
    """

    way: str
    first_seconds: float
    steps: int
    timing: Timing
    idle_share: float


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contender's row.

    Attributes:
        contender: The contender.
        facts: ``platform``, ``device`` and ``versions``. Empty if it did not start.
        results: The result of each thing that it did.
        reasons: The reason, in one sentence, for each thing that it did not do.
    """

    contender: Contender
    facts: Mapping[str, Any]
    results: Mapping[str, Result]
    reasons: Mapping[str, str]


def _start(contender: Contender, *, python: str, cores: Sequence[int], cache: str) -> Worker:
    """Starts a contender's process on some cores. ``cache`` is a folder for its compiler."""
    threads = str(len(cores))
    environment = os.environ | {
        # Beside the cores, which a worker chooses itself.
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_NUM_INTEROP_THREADS": threads,
        # Threads that spin while they wait for work give up after 20 ms at most, so they are asleep
        # while others run.
        "KMP_BLOCKTIME": "20",
        # All contenders share one accelerator.
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        # Nobody has compiled the first step before.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TORCHINDUCTOR_CACHE_DIR": cache,
        **contender.environment,
    }
    if python == sys.executable:
        environment["PYTHONPATH"] = import_path()
    served = {"cores": list(cores), "file": str(contender.file), "options": contender.options}
    return Worker(WORKER, "ContenderProcess", served, python=python, environment=environment)


def race(
    contenders: Mapping[str, Contender],
    task: Task,
    *,
    whats: Sequence[str] = WHATS,
    repeats: int = 5,
    steps: int | None = None,
    pythons: Mapping[str, str],
    on_phase: Callable[[str], None] = lambda phase: None,
) -> dict[str, Entry]:
    """Times all contenders at each thing: prepares one after the other, then lets them take turns.

    Args:
        contenders: The contenders by name. The first sets the platform for all.
        task: The task of all of them.
        whats: The things to time, some of ``WHATS``.
        repeats: The number of turns of each.
        steps: The number of steps per turn. None means as many as take about a second.
        pythons: The interpreter of each contender.
        on_phase: Is told what goes on, a few words at a time.

    Returns:
        An entry for each contender, in their order. One that fails has an entry too.
    """
    facts: dict[str, Mapping[str, Any]] = {name: {} for name in contenders}
    results: dict[str, dict[str, Result]] = {name: {} for name in contenders}
    reasons: dict[str, dict[str, str]] = {name: {} for name in contenders}
    cores = sorted(os.sched_getaffinity(0))[: task.threads]
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    # The folder is removed after the processes that write to it.
    with folder as cache, contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, contender in contenders.items():
            try:
                if contender.name_of(task.model) is None:
                    raise WorkerError(f"it has no {task.model}")
                on_phase(f"{contender.title}: starting")
                worker = stack.enter_context(
                    _start(contender, python=pythons[name], cores=cores, cache=f"{cache}/{name}")
                )
                facts[name] = worker.call("load")
                # All run on the kind of device that the first one runs on.
                first = facts[next(iter(workers), name)]["platform"]
                here = facts[name]["platform"]
                if here != first:
                    raise WorkerError(f"it finds no {first} here, only a {here}")
                workers[name] = worker
            except WorkerError as error:
                reasons[name] = dict.fromkeys(whats, _reason(error))
        for what in whats:
            prepared: dict[str, dict[str, Any]] = {}
            taken: dict[str, list[dict[str, float]]] = {}
            for name, worker in workers.items():
                on_phase(f"{contenders[name].title}: compiling {what}")
                arguments = dataclasses.asdict(task) | {
                    "model": contenders[name].name_of(task.model)
                }
                try:
                    prepared[name] = worker.call("prepare", what=what, steps=steps, **arguments)
                    taken[name] = []
                except WorkerError as error:
                    reasons[name][what] = _reason(error)
            for number, name in turns(prepared, repeats):
                if what in reasons[name]:
                    continue
                on_phase(f"{contenders[name].title}: {what}, turn {number + 1} of {repeats}")
                time.sleep(SETTLE_SECONDS)
                try:
                    turn = workers[name].call("turn", steps=prepared[name]["steps"])
                    taken[name].append(turn)
                except WorkerError as error:
                    reasons[name][what] = _reason(error)
            for name, found in prepared.items():
                if what in reasons[name]:
                    continue
                idle, waited = (sum(t[k] for t in taken[name]) for k in ("idle_cpu", "waited"))
                results[name][what] = Result(
                    way=found["way"],
                    first_seconds=found["first_seconds"],
                    steps=found["steps"],
                    timing=Timing(tuple(t["seconds"] / found["steps"] for t in taken[name])),
                    idle_share=idle / waited,
                )
    return {
        name: Entry(contender, facts[name], results[name], reasons[name])
        for name, contender in contenders.items()
    }


def _reason(error: WorkerError) -> str:
    says_all = error.kind in (None, "ModuleNotFoundError") or error.kind == str(error)
    text = str(error) if says_all else f"{error.kind}: {error}"
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"
