"""Trains a model progressively: ``python -m effnetv2_jax.train --config=FILE --workdir=DIR``.

The same command resumes a run that was stopped, from its newest checkpoint.
"""

import time

import jax
from absl import flags, logging
from ml_collections import config_flags

from effnetv2_jax import hosts, programs
from effnetv2_jax.training import evaluation, report
from effnetv2_jax.training.checkpoint import Checkpoints
from effnetv2_jax.training.history import make_writer, write_parameter_overview
from effnetv2_jax.training.loop import Loop
from effnetv2_jax.training.mesh import shard_state
from effnetv2_jax.training.progress import LogProgress, make_progress
from effnetv2_jax.training.state import TrainState

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, e.g. configs/digits.py; its fields change by --config.FIELD=VALUE."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints, metrics and the report go.", required=True
)
flags.mark_flag_as_required("config")


def main() -> None:
    config = programs.loaded(CONFIG.value)
    programs.agree(config, workdir=WORKDIR.value)
    run = programs.build(config)
    workdir = programs.claim_workdir(WORKDIR.value, config)
    checkpoints = Checkpoints(workdir, keep=config.checkpoints_to_keep)
    abstract_state = jax.eval_shape(run.initial_state)
    resumed = checkpoints.latest_step() is not None
    if resumed:
        state = checkpoints.restore(abstract_state, run.mesh)
        logging.info("resuming at step %d from %s", state.step, workdir)
    else:
        state = shard_state(run.initial_state(), run.mesh)
    programs.claim_class_names(workdir, run.source)
    if hosts.is_first():
        write_parameter_overview(workdir / "parameters.txt", abstract_state.params)
    logging.info(
        "%s on %s, %d classes, %d parameters (%s), %d × %s",
        run.name,
        run.source.name,
        run.source.num_classes,
        sum(x.size for x in jax.tree.leaves(abstract_state.params)),
        workdir / "parameters.txt",
        run.mesh.size,
        jax.devices()[0].device_kind,
    )

    def evaluate(state: TrainState) -> dict[str, float]:
        batches = run.eval_batches(config.data.eval_split, config.eval_image_size)
        return evaluation.evaluate(
            run.eval_step, state.ema_params, state.ema_batch_stats, batches, run.mesh
        )

    writer = make_writer(workdir if hosts.is_first() else None)
    loop = Loop(
        train_step=run.train_step,
        mesh=run.mesh,
        batches=run.train_batches,
        evaluate=evaluate,
        learning_rate=run.learning_rate,
        checkpoints=checkpoints,
        writer=writer,
        progress=make_progress(run.stages[-1].end_step) if hosts.is_first() else LogProgress(),
        log_every_steps=config.log_every_steps,
        checkpoint_every_steps=config.checkpoint_every_steps,
    )
    started = time.perf_counter()
    state = loop.run(state, run.stages)
    seconds = time.perf_counter() - started
    checkpoints.close()
    writer.close()
    if not hosts.is_first():
        return
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
