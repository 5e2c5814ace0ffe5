"""Trains a model progressively: ``python -m effnetv2_jax.train --config=FILE --workdir=DIR``.

The same command resumes a run that was stopped, from its newest checkpoint.
"""

from effnetv2_jax.runtime import extras

extras.need_for_program("train")

import pathlib
import time
from typing import Any

import jax
from absl import flags, logging
from ml_collections import ConfigDict

from effnetv2_jax.progressive import stage_at
from effnetv2_jax.runtime import cli, hosts, recipe, workdir
from effnetv2_jax.runtime.config import agree, build
from effnetv2_jax.runtime.errors import Stopped, UsageError
from effnetv2_jax.runtime.run import Run
from effnetv2_jax.runtime.signals import StopRequest, leave, listening
from effnetv2_jax.training.evaluation import Evaluation, evaluate
from effnetv2_jax.training.loop import Cadence, Loop
from effnetv2_jax.training.mesh import shard_state
from effnetv2_jax.training.observing import report
from effnetv2_jax.training.observing.history import (
    make_writer,
    rewind,
    write_parameter_overview,
)
from effnetv2_jax.training.observing.monitor import Monitor
from effnetv2_jax.training.observing.progress import LogProgress, make_progress
from effnetv2_jax.training.observing.status import Status
from effnetv2_jax.training.preparation import Preparation
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.survival.agreement import Agreement
from effnetv2_jax.training.survival.bad_steps import BadSteps
from effnetv2_jax.training.survival.checkpoint import Checkpoints, Keep
from effnetv2_jax.training.survival.stalls import Watch

CONFIG = recipe.define_flag()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints, metrics and the report.", required=True
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
    agree(config, workdir=WORKDIR.value)
    run = build(config)
    record = workdir.make_record(config, run.source.class_names)
    folder = workdir.claim(WORKDIR.value, record)
    status = Status(folder if hosts.is_first() else None, run.stages)
    status.update(state="starting")
    try:
        seconds, resumed = _train(config, run, record, folder, status, stop)
    except BaseException as error:
        status.update(state="stopped" if isinstance(error, Stopped) else "failed")
        raise
    status.update(state="finished", seconds_left=0)
    if hosts.is_first():
        _report(config, run, folder, seconds, resumed)


def _train(
    config: ConfigDict,
    run: Run,
    record: dict[str, Any],
    folder: pathlib.Path,
    status: Status,
    stop: StopRequest,
) -> tuple[float, bool]:
    """Returns the seconds spent in the loop, and True if the run was resumed."""
    training, mesh, last_step = run.training, run.training.mesh, run.stages[-1].end_step
    checkpoints = Checkpoints(
        folder,
        keep=Keep(
            newest=config.checkpoint.keep_newest,
            every_steps=config.checkpoint.keep_every_steps,
            best=config.checkpoint.keep_best,
        ),
    )
    found = checkpoints.latest_step()
    resumed, first_step = found is not None, found or 0
    preparation = Preparation(
        training.train_step,
        mesh=mesh,
        batches=run.train_batches,
        batch_shapes=run.batch_shapes,
        state=training.abstract_state(),
        first_step=first_step,
    )
    if first_step < last_step:
        # Begins before the state is made or read, and goes on meanwhile.
        preparation.prepared(stage_at(run.stages, first_step))
    if resumed:
        record = _resumed(record, checkpoints.record())
        state = checkpoints.restore(training.shapes, mesh)
        logging.info("resuming at step %d from %s", state.step, folder)
    else:
        state = shard_state(run.first_state(), mesh)
    metrics = folder / "metrics.jsonl"
    with hosts.first_alone("history"):
        if hosts.is_first():
            rewind(folder, int(state.step))
            if not (folder / "parameters.txt").exists():
                write_parameter_overview(folder / "parameters.txt", training.shapes.params)
    if run.evaluations:
        checkpoints.scores |= report.read_scores(metrics, run.evaluations[0].name)
    logging.info(
        "%s on %s, %d classes, %d parameters (%s), %d × %s",
        run.name,
        run.source.name,
        run.source.num_classes,
        sum(x.size for x in jax.tree.leaves(training.shapes.params)),
        folder / "parameters.txt",
        mesh.size,
        jax.devices()[0].device_kind,
    )
    writer = make_writer(folder if hosts.is_first() else None)
    watch = Watch(config.stall_seconds, lambda: status.update(state="stalled"))
    monitor = Monitor(
        writer=writer,
        progress=make_progress(last_step) if hosts.is_first() else LogProgress(),
        status=status,
        watch=watch,
    )

    def make_evaluation(
        evaluation: Evaluation, state: TrainState, agreement: Agreement
    ) -> dict[str, float] | None:
        return evaluate(
            training.eval_step,
            *evaluation.choose_weights(state),
            run.eval_batches(evaluation),
            mesh,
            agreement=agreement,
            moves=lambda: monitor.moves(f"evaluating {evaluation.name}"),
        )

    loop = Loop(
        mesh=mesh,
        preparation=preparation,
        evaluations=run.evaluations,
        evaluate=make_evaluation,
        evaluated=[
            evaluation.name
            for evaluation in run.evaluations
            if first_step in report.read_scores(metrics, evaluation.name)
        ],
        learning_rate=run.learning_rate,
        checkpoints=checkpoints,
        bad_steps=BadSteps(
            config.max_bad_steps,
            record.get("bad_in_a_row", 0),
            file=folder / "bad_steps.jsonl" if hosts.is_first() else None,
            examples=run.examples,
        ),
        monitor=monitor,
        cadence=Cadence(
            log_steps=config.log_every_steps,
            save_steps=config.checkpoint.every_steps,
            save_seconds=config.checkpoint.every_seconds,
        ),
        stop=stop,
        record=record,
    )
    started = time.perf_counter()
    try:
        loop.run(state, run.stages)
    finally:
        watch.stop()
        writer.close()
        checkpoints.close()
        saved = max(checkpoints.steps(), default=0)
        status.update(last_checkpoint=saved)
    if saved != last_step:
        raise UsageError(
            f"the last step could not be saved; the same command goes on from step {saved}"
        )
    return time.perf_counter() - started, resumed


def _resumed(now: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of a run that goes on; warns if library versions have changed."""
    changed = [
        f"{name} {there['versions'].get(name, '–')} → {version}"
        for name, version in now["versions"].items()
        if there["versions"].get(name) != version
    ]
    if changed:
        logging.warning(
            "other versions than before, whose numbers may differ in the last bit: %s",
            ", ".join(changed),
        )
    return there | now


def _report(
    config: ConfigDict, run: Run, folder: pathlib.Path, seconds: float, resumed: bool
) -> None:
    history = report.read_history(folder / "metrics.jsonl")
    train_size = run.source.split(run.train_split).size
    facts = {
        "model": f"{run.name}, {config.model.dtype}",
        "data": f"{run.source.name}: trained on {run.train_split} ({train_size} images)",
        "schedule": f"{config.schedule.name}, {len(run.stages)} stages, {config.epochs} epochs",
        "device": f"{run.training.mesh.size} × {jax.devices()[0].device_kind}",
        "seed": str(config.seed),
    }
    results = []
    for evaluation in run.evaluations:
        name, weights = evaluation.name, "EMA" if evaluation.weights == "ema" else "raw"
        size = run.sources[evaluation.data].split(evaluation.split).size
        final = next(row for row in reversed(history) if f"{name}/top1" in row)
        top1, top5 = (f"{100 * final[f'{name}/{key}']:.2f} %" for key in ("top1", "top5"))
        where = evaluation.split
        if evaluation.data != run.source.name:
            where = f"{evaluation.data}/{where}"
        prefix = "" if name == "eval" else f"{name}: "
        facts[f"{prefix}evaluation"] = (
            f"{where} ({size} images) at {evaluation.image_size} px with the {weights} weights"
        )
        facts |= {f"{prefix}top-1": top1, f"{prefix}top-5": top5}
        results.append(f"{prefix}top-1 {top1}, top-5 {top5} on {where}")
    since = " since the last resumption" if resumed else ""
    facts[f"seconds in the loop{since}"] = f"{seconds:.0f}"
    picture, text = report.write_report(
        folder, history, title=f"{run.name} on {run.source.name}", facts=facts
    )
    for line in results:
        print(line)
    print(f"report: {text} and {picture}")


if __name__ == "__main__":
    cli.run(main, several_processes=True)
