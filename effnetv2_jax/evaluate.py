"""Evaluates a run: ``python -m effnetv2_jax.evaluate --workdir=DIR``.

Every example of the split counts once. By default this repeats the run's own evaluation.
"""

from effnetv2_jax.runtime import extras

extras.need_for_program("train")

import dataclasses
import json
from typing import Any

from absl import flags, logging

from effnetv2_jax.runtime import cli, hosts
from effnetv2_jax.runtime.config import agree, build, make_evaluations
from effnetv2_jax.runtime.errors import unknown_name
from effnetv2_jax.runtime.files import local_path
from effnetv2_jax.runtime.workdir import read_class_names, read_config
from effnetv2_jax.training.observing import report
from effnetv2_jax.training.survival.checkpoint import Checkpoints

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
EVAL = flags.DEFINE_string(
    "eval",
    None,
    "Name of an evaluation in config.evals. It has the defaults of the flags below, and it defines "
    "the best checkpoint. Default: the evaluation that scored the checkpoints.",
)
SPLIT = flags.DEFINE_string("split", None, "Split to evaluate.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Side of the images in px.", lower_bound=1)
EMA = flags.DEFINE_bool("ema", None, "Use the moving averages of weights and batch statistics.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "newest",
    "Checkpoint to evaluate: newest, best (by top-1 in the run's own evaluations), or a step.",
)
JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def main() -> None:
    config = read_config(WORKDIR.value)
    if not config.evals:
        config.evals = {"eval": {}}
    evaluations = {evaluation.name: evaluation for evaluation in make_evaluations(config)}
    if EVAL.value is not None and EVAL.value not in evaluations:
        raise unknown_name("eval", EVAL.value, evaluations)
    evaluation = evaluations[EVAL.value or next(iter(evaluations))]
    # The network stays the run's: a ViT, which is made for one size, refuses another.
    weights = {True: "ema", False: "raw", None: None}[EMA.value]
    changes: dict[str, Any] = {
        "split": SPLIT.value,
        "image_size": IMAGE_SIZE.value,
        "weights": weights,
    }
    evaluation = dataclasses.replace(
        evaluation, **{name: value for name, value in changes.items() if value is not None}
    )
    agree(
        config,
        workdir=WORKDIR.value,
        evaluation=dataclasses.asdict(evaluation),
        checkpoint=CHECKPOINT.value,
    )
    run = build(config, only=evaluation, class_names=read_class_names(WORKDIR.value))
    folder = local_path(WORKDIR.value)
    scores = report.read_scores(folder / "metrics.jsonl", evaluation.name)
    checkpoints = Checkpoints(WORKDIR.value, scores=scores, read_only=True)
    step = checkpoints.choose(CHECKPOINT.value)
    logging.info(
        "images: input family %s of the run's config, %d px (--image_size changes it)",
        run.preprocessing.name,
        evaluation.image_size,
    )
    state = checkpoints.restore(run.training.shapes, run.training.mesh, step)
    checkpoints.close()
    metrics = run.evaluate(evaluation, state)
    assert metrics is not None  # nothing can stop it
    split, image_size = evaluation.split, evaluation.image_size
    if not hosts.is_first():
        return
    if JSON.value:
        print(json.dumps({**metrics, "step": step, "split": split, "image_size": image_size}))
    else:
        print(
            f"{run.name} on {evaluation.data}/{split} at step {step}, {image_size} px, "
            f"{metrics['count']} images: top-1 {100 * metrics['top1']:.2f} %, "
            f"top-5 {100 * metrics['top5']:.2f} %, loss {metrics['loss']:.4f}"
        )


if __name__ == "__main__":
    cli.run(main, several_processes=True)
