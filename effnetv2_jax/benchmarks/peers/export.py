"""Time exported networks: ``python -m effnetv2_jax.benchmark export``.

Exports a network with random weights to each format and times it in the format's own runtime,
beside our jitted call and timm in PyTorch, compiled: the same network, image size, batch and
threads, on noise in float32. Each runs in a process of its own. They take turns, one at a time,
while all the others wait. A runtime or library that is not installed has a row that says so. torch
usually lives in another environment, whose interpreter ``--torch_python`` names.
"""

import contextlib
import json
import os
import sys
import tempfile
from typing import Any

from absl import flags, logging

from effnetv2_jax.benchmarks.markdown import NOTHING, table
from effnetv2_jax.benchmarks.peers.contenders import CONTENDERS, OURS, Contender, find_python
from effnetv2_jax.benchmarks.peers.race import Entry, Task, race
from effnetv2_jax.benchmarks.timing.measure import environment_text
from effnetv2_jax.exporting import runtimes
from effnetv2_jax.exporting.artefact import export_model
from effnetv2_jax.exporting.formats import FORMATS
from effnetv2_jax.models import create_model, get_spec
from effnetv2_jax.runtime.bars import spinner
from effnetv2_jax.runtime.errors import UsageError, unknown_name
from effnetv2_jax.weights import load_model, save_weights

MODEL = flags.DEFINE_string("model", "efficientnetv2-b0", "Model, a name of list_models().")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Image size in px.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_list("batch_size", ["1", "32"], "Numbers of images per call.")
TO = flags.DEFINE_list("to", list(FORMATS), "Formats.")
THREADS = flags.DEFINE_integer(
    "threads", None, "Threads of each. Default: as many as this process has cores.", lower_bound=1
)
REPEATS = flags.DEFINE_integer("repeats", 5, "Number of turns of each.", lower_bound=5)
STEPS = flags.DEFINE_integer(
    "steps", None, "Steps per turn. Default: as many as take about a second.", lower_bound=1
)
TORCH_PYTHON = flags.DEFINE_string(
    "torch_python", None, "Interpreter that has torch and timm. Default: this one."
)
JSON = flags.DEFINE_boolean("json", False, "Print JSON instead of a table.")

WHAT = "inference"
TIMM = "timm-compiled"


def main() -> None:
    get_spec(MODEL.value)
    for name in TO.value:
        if name not in FORMATS:
            raise unknown_name("format", name, FORMATS)
    sizes = [_batch_size(text) for text in BATCH_SIZE.value]
    threads = THREADS.value or len(os.sched_getaffinity(0))
    torch_python = find_python(TORCH_PYTHON.value)
    logging.set_verbosity(logging.WARNING)
    found = {}
    with tempfile.TemporaryDirectory() as scratch, spinner(f"{MODEL.value}:") as show:
        weights = f"{scratch}/weights.safetensors"
        save_weights(create_model(MODEL.value), weights)
        for size in sizes:
            contenders = {OURS: CONTENDERS[OURS]}
            reasons = {}
            for name in TO.value:
                show(f"{name}: exporting")
                folder = f"{scratch}/{name}-{size}"
                try:
                    _export(weights, name, folder, size)
                    contenders[name] = _contender(name, folder)
                except UsageError as error:
                    reasons[name] = str(error)
            contenders[TIMM] = CONTENDERS[TIMM]
            entries = race(
                contenders,
                Task(MODEL.value, IMAGE_SIZE.value, size, "float32", threads),
                whats=[WHAT],
                repeats=REPEATS.value,
                steps=STEPS.value,
                pythons=dict.fromkeys(contenders, sys.executable) | {TIMM: torch_python},
                on_phase=show,
            )
            found[size] = {name: _cells(entry, size) for name, entry in entries.items()} | {
                name: {"not_run": reason} for name, reason in reasons.items()
            }
    if JSON.value:
        print(json.dumps({"model": MODEL.value, "image_size": IMAGE_SIZE.value, "ms": found}))
        return
    print(f"{MODEL.value}, {IMAGE_SIZE.value} px, float32, {threads} threads each")
    print(f"medians of {REPEATS.value} turns (low–high), in turn, one at a time")
    print(f"{environment_text()}\n")
    print(_markdown(found))


def _batch_size(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch_size must be numbers from 1 with commas between, got {text!r}")
    return int(text)


def _export(weights: str, name: str, folder: str, batch_size: int) -> None:
    model, loaded = load_model(weights)
    # The converters write about themselves to stdout, which has the table.
    with contextlib.redirect_stdout(sys.stderr):
        export_model(
            model,
            loaded,
            to=name,
            output=folder,
            image_size=IMAGE_SIZE.value,
            batch_size=None if FORMATS[name].any_batch else batch_size,
        )


def _contender(name: str, folder: str) -> Contender:
    return Contender(
        title=f"{name}, {FORMATS[name].runtime}",
        file=runtimes.FILE,
        models=None,
        training="",
        inference="batch norm folded into the convolutions",
        environment={"TF_CPP_MIN_LOG_LEVEL": "3"},
        options={"folder": folder},
    )


def _cells(entry: Entry, batch_size: int) -> dict[str, Any]:
    if WHAT in entry.reasons:
        return {"title": entry.contender.title, "not_run": entry.reasons[WHAT]}
    timing = entry.results[WHAT].timing
    milliseconds = {"median": timing.median, "low": timing.low, "high": timing.high}
    return {"title": entry.contender.title} | {
        name: 1000 * seconds for name, seconds in milliseconds.items()
    }


def _markdown(found: dict[int, dict[str, dict[str, Any]]]) -> str:
    """Returns a table with a row for each contender and columns for each batch size."""
    names = list(dict.fromkeys(name for column in found.values() for name in column))
    head = ["", *(x for n in found for x in (f"batch {n} ms", "it ÷ ours"))]
    rows = [head]
    for name in names:
        row = [next(column[name].get("title", name) for column in found.values())]
        for column in found.values():
            cell, ours = column[name], column[OURS]
            if "not_run" in cell:
                row += [f"not run: {cell['not_run']}".replace("|", "\\|"), NOTHING]
                continue
            text = f"{cell['median']:.1f} ({cell['low']:.1f}–{cell['high']:.1f})"
            ratio = f"{cell['median'] / ours['median']:.2f}" if "median" in ours else NOTHING
            row += [text, ratio]
        rows.append(row)
    return table(rows)
