"""Has contenders run in turn, one at a time, while all the others wait."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from effnetv2_jax.benchmarks.peers.contenders import Contender
from effnetv2_jax.benchmarks.peers.process import NotRun, PeerProcess
from effnetv2_jax.benchmarks.timing.measure import Timing, turns

WHATS = ("training", "inference")

SETTLE_SECONDS = 0.2
"""Between two turns: by then threads that spin while they wait for work have gone to sleep."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What all contenders do.

    Attributes:
        model: a name of ``list_models()``.
        image_size: side in px.
        batch_size: images a step.
        dtype: of the computation, ``float32`` or ``bfloat16``.
        threads: that each may use, on as many cores.
    """

    model: str
    image_size: int
    batch_size: int
    dtype: str
    threads: int


@dataclasses.dataclass(frozen=True)
class Result:
    """What a contender did at one thing.

    Attributes:
        way: how it ran, the fastest of its ways.
        first_seconds: building the network, compiling it, and the first step.
        steps: of a turn.
        timing: of one step, a mean over each turn.
        idle_share: of a core, what its process took while others ran.
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
        title: what tables call it.
        facts: ``platform``, ``device`` and ``versions``; empty where it did not start.
        results: by what was done.
        reasons: by what was not done, why, in one sentence.
    """

    title: str
    facts: Mapping[str, Any]
    results: Mapping[str, Result]
    reasons: Mapping[str, str]


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
        contenders: by name; the first sets the platform for all.
        task: what they do.
        whats: of ``WHATS``.
        repeats: turns of each.
        steps: of a turn; None for as many as take about a second.
        pythons: the interpreter of each.
        on_phase: is told what goes on, a few words at a time.

    Returns:
        An entry for each, in their order; what fails is one too.
    """
    facts: dict[str, Mapping[str, Any]] = {name: {} for name in contenders}
    results: dict[str, dict[str, Result]] = {name: {} for name in contenders}
    reasons: dict[str, dict[str, str]] = {name: {} for name in contenders}
    cores = sorted(os.sched_getaffinity(0))[: task.threads]
    with contextlib.ExitStack() as stack:
        # Removed after the processes that write to it.
        cache = tempfile.mkdtemp()
        stack.callback(shutil.rmtree, cache, ignore_errors=True)
        processes = {}
        for name, contender in contenders.items():
            try:
                if contender.name_of(task.model) is None:
                    raise NotRun(f"it has no {task.model}")
                on_phase(f"{contender.title}: starting")
                process = PeerProcess(
                    contender, python=pythons[name], cores=cores, cache=f"{cache}/{name}"
                )
                stack.enter_context(process)
                facts[name] = process.ask("load")
                _check_platform(facts, name)
                processes[name] = process
            except NotRun as error:
                reasons[name] = {what: str(error) for what in whats}
        for what in whats:
            prepared = {}
            for name, process in processes.items():
                contender = contenders[name]
                on_phase(f"{contender.title}: compiling {what}")
                arguments = dataclasses.asdict(task) | {"model": contender.name_of(task.model)}
                try:
                    prepared[name] = process.ask("prepare", what=what, steps=steps, **arguments)
                except NotRun as error:
                    reasons[name][what] = str(error)
            ready = {name: processes[name] for name in prepared}
            outcomes = take_turns(
                ready,
                {name: found["steps"] for name, found in prepared.items()},
                repeats=repeats,
                on_turn=lambda name, number, what=what: on_phase(  # type: ignore[misc]
                    f"{contenders[name].title}: {what}, turn {number + 1} of {repeats}"
                ),
            )
            for name, outcome in outcomes.items():
                if isinstance(outcome, str):
                    reasons[name][what] = outcome
                else:
                    results[name][what] = _result(prepared[name], outcome)
    return {
        name: Entry(contender.title, facts[name], results[name], reasons[name])
        for name, contender in contenders.items()
    }


Turn = dict[str, float]


def take_turns(
    processes: Mapping[str, PeerProcess],
    steps: Mapping[str, int],
    *,
    repeats: int,
    on_turn: Callable[[str, int], None] = lambda name, number: None,
) -> dict[str, list[Turn] | str]:
    """The turns of each, all in the same weather; of one that fails, the reason."""
    taken: dict[str, list[Turn]] = {name: [] for name in processes}
    failed: dict[str, str] = {}
    for number, name in turns(processes, repeats):
        if name in failed:
            continue
        on_turn(name, number)
        time.sleep(SETTLE_SECONDS)
        try:
            taken[name].append(processes[name].ask("turn", steps=steps[name]))
        except NotRun as error:
            failed[name] = str(error)
    return {name: failed.get(name, taken[name]) for name in processes}


def _check_platform(facts: Mapping[str, Mapping[str, Any]], name: str) -> None:
    """Raises NotRun for one that would run on another kind of device than the first."""
    first = next((found["platform"] for found in facts.values() if found), None)
    if facts[name]["platform"] != first:
        raise NotRun(f"it finds no {first} here, only a {facts[name]['platform']}")


def _result(prepared: Mapping[str, Any], taken: list[Turn]) -> Result:
    steps = prepared["steps"]
    return Result(
        way=prepared["way"],
        first_seconds=prepared["first_seconds"],
        steps=steps,
        timing=Timing(tuple(turn["seconds"] / steps for turn in taken)),
        idle_share=sum(t["idle_cpu"] for t in taken) / sum(t["waited"] for t in taken),
    )
