"""Trains a model progressively: ``python -m effnetv2_jax.train --config=FILE --workdir=DIR``.

The same command resumes a run that was stopped, from its newest checkpoint.
"""

from effnetv2_jax.runtime import extras

extras.need_for_program("train")

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags, logging
from ml_collections import ConfigDict

from effnetv2_jax.runtime import cli, hosts, recipe, workdir
from effnetv2_jax.runtime.config import agree, build
from effnetv2_jax.runtime.errors import Stopped, UsageError
from effnetv2_jax.runtime.run import Run
from effnetv2_jax.runtime.signals import StopRequest, leave, listening
from effnetv2_jax.training.loop import Loop
from effnetv2_jax.training.mesh import shard_state
from effnetv2_jax.training.observing import report
from effnetv2_jax.training.observing.history import (
    make_writer,
    rewind,
    write_parameter_overview,
)
from effnetv2_jax.training.observing.monitor import Monitor
from effnetv2_jax.training.observing.progress import Progress
from effnetv2_jax.training.observing.status import Status
from effnetv2_jax.training.state import TrainState, is_finite
from effnetv2_jax.training.survival.bad_steps import BadSteps
from effnetv2_jax.training.survival.checkpoint import Checkpoints, Keep
from effnetv2_jax.training.survival.stalls import Watch

CONFIG = recipe.define_flag()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints, metrics and the report.", required=True
)
ACCEPT_CHANGED_DATA = flags.DEFINE_bool(
    "accept_changed_data",
    False,
    "Resume although the training data have changed since the run began. The ends of stages and "
    "the order of examples follow from the new ones.",
)

_PART_SECONDS = 10.0


def main() -> None:
    with listening() as stop:
        code, patience = 0, None
        try:
            train(stop)
        except Stopped as stopped:
            # A machine that is about to be taken away may be the only one that knows.
            code, patience = stop.exit_code, _PART_SECONDS
            if hosts.is_first():
                print(stopped)
        hosts.part(patience)
        # Threads may still wait for images, a compiler or a disk, and need not finish.
        leave(code)


def train(stop: StopRequest) -> None:
    config = recipe.checked(CONFIG.value)
    accept = ACCEPT_CHANGED_DATA.value
    agree(config, workdir=WORKDIR.value, accept_changed_data=accept)
    config = workdir.settle_dtype(config, WORKDIR.value)
    run = build(config)
    data = run.source.split(run.train_split).identity()
    record = workdir.make_record(config, run.source.class_names, data)
    folder = workdir.claim(WORKDIR.value, record, accept_changed_data=accept)
    with Status(folder if hosts.is_first() else None, run.stages) as status:
        loop, state = _make_loop(config, run, record, folder, status, stop)
        since = " since the last resumption" if int(state.step) else ""
        started = time.perf_counter()
        state = loop.run(state)
        times = {f"seconds in the loop{since}": f"{time.perf_counter() - started:.0f}"}
        with hosts.first_alone("report"):
            history = report.read_history(folder / "metrics.jsonl")
            if hosts.is_first():
                _report(config, run, folder, history, times)
            _refuse_not_finite(run, state, history, loop.checkpoints.steps())


def _make_loop(
    config: ConfigDict,
    run: Run,
    record: Mapping[str, Any],
    folder: pathlib.Path,
    status: Status,
    stop: StopRequest,
) -> tuple[Loop, TrainState]:
    """Returns the loop, and the state that it begins with: a new one, or the newest checkpoint."""
    training, keep, metrics = run.training, config.checkpoint, folder / "metrics.jsonl"
    checkpoints = Checkpoints(
        folder, keep=Keep(keep.keep_newest, keep.keep_every_steps, keep.keep_best)
    )
    first_step = checkpoints.latest_step() or 0
    # Begins before the state is made or read, and goes on meanwhile.
    preparation = run.prepare(first_step)
    if checkpoints.latest_step() is None:
        state = shard_state(run.first_state(), training.mesh)
    else:
        record = workdir.resume_record(record, checkpoints.record())
        state = checkpoints.restore(training.shapes, training.mesh)
        logging.info("resuming at step %d from %s", first_step, folder)
    with hosts.first_alone("history"):
        if hosts.is_first():
            rewind(folder, first_step)
            write_parameter_overview(folder / "parameters.txt", training.shapes.params)
    scores = {x.name: report.read_scores(metrics, x.name) for x in run.evaluations}
    # The first evaluation decides which checkpoints are the best.
    checkpoints.scores.update(next(iter(scores.values()), {}))
    logging.info(
        "%s on %s, %d classes, %d parameters (%s), %d × %s",
        run.name,
        run.source.name,
        run.source.num_classes,
        sum(x.size for x in jax.tree.leaves(training.shapes.params)),
        folder / "parameters.txt",
        training.mesh.size,
        jax.devices()[0].device_kind,
    )
    loop = Loop(
        stages=run.stages,
        preparation=preparation,
        evaluations=run.evaluations,
        evaluate=run.evaluate,
        evaluated=[name for name, by_step in scores.items() if first_step in by_step],
        learning_rate=run.learning_rate,
        checkpoints=checkpoints,
        bad_steps=BadSteps(
            config.max_bad_steps,
            record.get("bad_in_a_row", 0),
            file=folder / "bad_steps.jsonl" if hosts.is_first() else None,
            examples=run.examples,
        ),
        monitor=Monitor(
            writer=make_writer(folder if hosts.is_first() else None),
            progress=Progress(run.stages[-1].end_step if hosts.is_first() else None),
            status=status,
            watch=Watch(config.stall_seconds, lambda: status.update(state="stalled")),
        ),
        log_steps=config.log_every_steps,
        save_steps=keep.every_steps,
        save_seconds=keep.every_seconds,
        stop=stop,
        record=record,
    )
    return loop, state


def _report(
    config: ConfigDict,
    run: Run,
    folder: pathlib.Path,
    history: report.History,
    times: dict[str, str],
) -> None:
    train_size = run.source.split(run.train_split).size
    facts = {
        "model": f"{run.name}, {config.model.dtype}",
        "data": f"{run.source.name}: trained on {run.train_split} ({train_size} images)",
        "schedule": f"{config.schedule.name}, {len(run.stages)} stages, {config.epochs} epochs",
        "device": f"{run.training.mesh.size} × {jax.devices()[0].device_kind}",
        "seed": str(config.seed),
    }
    for evaluation in run.evaluations:
        name, where = evaluation.name, evaluation.split
        if evaluation.data != run.source.name:
            where = f"{evaluation.data}/{where}"
        size = run.sources[evaluation.data].split(evaluation.split).size
        weights = "EMA" if evaluation.weights == "ema" else "raw"
        final = next(row for row in reversed(history) if f"{name}/top1" in row)
        top1, top5 = (f"{100 * final[f'{name}/{key}']:.2f} %" for key in ("top1", "top5"))
        prefix = "" if name == "eval" else f"{name}: "
        facts |= {
            f"{prefix}evaluation": (
                f"{where} ({size} images) at {evaluation.image_size} px with the {weights} weights"
            ),
            f"{prefix}top-1": top1,
            f"{prefix}top-5": top5,
        }
        print(f"{prefix}top-1 {top1}, top-5 {top5} on {where}")
    picture, text = report.write_report(
        folder, history, title=f"{run.name} on {run.source.name}", facts=facts | times
    )
    print(f"report: {text} and {picture}")


def _refuse_not_finite(
    run: Run, state: TrainState, history: report.History, saved: Sequence[int]
) -> None:
    """Raises UsageError if a run ends with numbers that are worth nothing."""
    wrong, good = report.find_not_finite(history, [x.name for x in run.evaluations])
    wrong += [] if is_finite(state) else ["weights or statistics"]
    if wrong:
        kept = good.intersection(saved)
        with_finite = "checkpoint with a finite evaluation"
        raise UsageError(
            f"the run ended with numbers that are not finite ({', '.join(wrong)}); "
            + (f"the last {with_finite} is {max(kept)}" if kept else f"there is no {with_finite}")
            + ", and a smaller optimizer.learning_rate in another workdir may help"
        )


if __name__ == "__main__":
    cli.run(main, several_processes=True)
