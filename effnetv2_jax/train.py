"""Trains a model progressively: ``python -m effnetv2_jax.train --config=FILE --workdir=DIR``.

The same command resumes a run that was stopped, from its newest checkpoint.
"""

import pathlib
import time
from typing import Any

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from effnetv2_jax.progressive import stage_at
from effnetv2_jax.runtime import config as programs
from effnetv2_jax.runtime import hosts
from effnetv2_jax.runtime.errors import Stopped, UsageError
from effnetv2_jax.runtime.signals import StopRequest, leave, listening
from effnetv2_jax.training import evaluation
from effnetv2_jax.training.loop import Cadence, Loop
from effnetv2_jax.training.mesh import abstract_state, shard_state
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

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, e.g. configs/digits.py; its fields change by --config.FIELD=VALUE."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints, metrics and the report go.", required=True
)
flags.mark_flag_as_required("config")

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
        # Threads may be waiting for images, a compiler or a disk, and need not end what they do.
        leave(code)


def train(stop: StopRequest) -> None:
    config = programs.loaded(CONFIG.value)
    programs.agree(config, workdir=WORKDIR.value)
    run = programs.build(config)
    record = programs.about(config, run.source)
    workdir = programs.claim_workdir(WORKDIR.value, record)
    status = Status(workdir if hosts.is_first() else None, run.stages)
    status.update(state="starting")
    try:
        seconds, resumed = _train(config, run, record, workdir, status, stop)
    except BaseException as error:
        status.update(state="stopped" if isinstance(error, Stopped) else "failed")
        raise
    status.update(state="finished", seconds_left=0)
    if hosts.is_first():
        _report(config, run, workdir, seconds, resumed)


def _train(
    config: ConfigDict,
    run: programs.Run,
    record: dict[str, Any],
    workdir: pathlib.Path,
    status: Status,
    stop: StopRequest,
) -> tuple[float, bool]:
    """Returns the seconds in the loop, and whether the run was resumed."""
    checkpoints = Checkpoints(
        workdir,
        keep=Keep(
            newest=config.checkpoint.keep_newest,
            every_steps=config.checkpoint.keep_every_steps,
            best=config.checkpoint.keep_best,
        ),
    )
    found = checkpoints.latest_step()
    resumed, first_step = found is not None, found or 0
    preparation = Preparation(
        run.train_step,
        mesh=run.mesh,
        batches=run.train_batches,
        batch_shapes=run.batch_shapes,
        state=abstract_state(run.state_shapes, run.mesh),
        first_step=first_step,
    )
    if first_step < run.stages[-1].end_step:
        # Before the state is made, while it is read.
        preparation.prepared(stage_at(run.stages, first_step))
    if resumed:
        record = _resumed(record, checkpoints.record())
        state = checkpoints.restore(run.state_shapes, run.mesh)
        logging.info("resuming at step %d from %s", state.step, workdir)
    else:
        made = preparation.in_turn(lambda: shard_state(run.first_state(), run.mesh))
        state = made.result()
    with hosts.first_alone("history"):
        if hosts.is_first():
            rewind(workdir, int(state.step))
            if not (workdir / "parameters.txt").exists():
                write_parameter_overview(workdir / "parameters.txt", run.state_shapes.params)
    checkpoints.scores |= report.read_scores(workdir / "metrics.jsonl")
    logging.info(
        "%s on %s, %d classes, %d parameters (%s), %d × %s",
        run.name,
        run.source.name,
        run.source.num_classes,
        sum(x.size for x in jax.tree.leaves(run.state_shapes.params)),
        workdir / "parameters.txt",
        run.mesh.size,
        jax.devices()[0].device_kind,
    )
    writer = make_writer(workdir if hosts.is_first() else None)
    watch = Watch(config.stall_seconds, lambda: status.update(state="stalled"))
    monitor = Monitor(
        writer=writer,
        progress=make_progress(run.stages[-1].end_step) if hosts.is_first() else LogProgress(),
        status=status,
        watch=watch,
    )

    def evaluate(state: TrainState, agreement: Agreement) -> dict[str, float] | None:
        return evaluation.evaluate(
            run.eval_step,
            state.ema_params,
            state.ema_batch_stats,
            run.eval_batches(config.data.eval_split, config.eval_image_size),
            run.mesh,
            agreement=agreement,
            moves=lambda: monitor.moves("evaluating"),
        )

    loop = Loop(
        train_step=run.train_step,
        mesh=run.mesh,
        preparation=preparation,
        evaluate=evaluate,
        learning_rate=run.learning_rate,
        checkpoints=checkpoints,
        bad_steps=BadSteps(
            config.max_bad_steps,
            record.get("bad_in_a_row", 0),
            file=workdir / "bad_steps.jsonl" if hosts.is_first() else None,
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
    if saved != run.stages[-1].end_step:
        raise UsageError(
            f"the last step could not be saved; the same command goes on from step {saved}"
        )
    return time.perf_counter() - started, resumed


def _resumed(now: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    """The record of a run that goes on, which need not have the same versions as it began with."""
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
    config: ConfigDict, run: programs.Run, workdir: pathlib.Path, seconds: float, resumed: bool
) -> None:
    history = report.read_history(workdir / "metrics.jsonl")
    final = next(row for row in reversed(history) if "eval/top1" in row)
    facts = {
        "model": f"{run.name}, {config.model.dtype}",
        "data": f"{run.source.name}: trained on {config.data.train_split} "
        f"({run.source.split(config.data.train_split).size} images), "
        f"evaluated on {config.data.eval_split} "
        f"({run.source.split(config.data.eval_split).size} images) "
        f"at {config.eval_image_size} px with the EMA weights",
        "schedule": f"{config.schedule.name}, {len(run.stages)} stages, {config.epochs} epochs",
        "device": f"{run.mesh.size} × {jax.devices()[0].device_kind}",
        "seed": str(config.seed),
        "top-1": f"{100 * final['eval/top1']:.2f} %",
        "top-5": f"{100 * final['eval/top5']:.2f} %",
        "seconds in the loop" + (" since the last resumption" if resumed else ""): f"{seconds:.0f}",
    }
    picture, text = report.write_report(
        workdir, history, title=f"{run.name} on {run.source.name}", facts=facts
    )
    print(f"top-1 {facts['top-1']}, top-5 {facts['top-5']} on {config.data.eval_split}")
    print(f"report: {text} and {picture}")


if __name__ == "__main__":
    programs.run(main)
