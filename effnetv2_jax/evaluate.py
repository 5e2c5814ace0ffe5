"""Evaluates a run: ``python -m effnetv2_jax.evaluate --workdir=DIR``.

Every example of the split counts once. By default this repeats the run's own evaluation.
"""

from effnetv2_jax.runtime import extras

extras.need_for_program("train")

import dataclasses
import json
import math
from collections.abc import Collection
from typing import Any

import jax
from absl import flags, logging
from jax.sharding import Mesh

from effnetv2_jax.runtime import cli, hosts
from effnetv2_jax.runtime.config import agree, build_scorer, make_evaluations
from effnetv2_jax.runtime.errors import UsageError, unknown_name
from effnetv2_jax.runtime.files import local_path
from effnetv2_jax.runtime.workdir import read_class_names, read_config
from effnetv2_jax.training.mesh import shard_state
from effnetv2_jax.training.observing import report
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.survival.checkpoint import Checkpoints, read_parts

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
    scorer = build_scorer(config, evaluation, read_class_names(WORKDIR.value))
    mesh, shapes = scorer.training.mesh, scorer.training.shapes
    # Padding does not count, so that any number of devices will do.
    batch_size = -(-evaluation.batch_size // mesh.size) * mesh.size
    evaluation = dataclasses.replace(evaluation, batch_size=batch_size)
    folder = local_path(WORKDIR.value)
    scores = report.read_scores(folder / "metrics.jsonl", evaluation.name)
    checkpoints = Checkpoints(WORKDIR.value, scores=scores, read_only=True)
    step = checkpoints.choose(CHECKPOINT.value)
    checkpoints.close()
    logging.info(
        "images: input family %s of the run's config, %d px (--image_size changes it)",
        scorer.preprocessing.name,
        evaluation.image_size,
    )
    # Nothing of the optimizer is read, and nothing is split over devices as training split it.
    state = _restored(shapes, evaluation.parts, step, mesh)
    metrics = scorer.evaluate(evaluation, state)
    assert metrics is not None  # nothing can stop it
    split, image_size = evaluation.split, evaluation.image_size
    if not math.isfinite(metrics["loss"]):
        raise UsageError(
            f"at step {step}, the loss on {evaluation.data}/{split} is not finite "
            f"({metrics['loss']}): --checkpoint chooses another checkpoint"
        )
    if not hosts.is_first():
        return
    if JSON.value:
        print(json.dumps({**metrics, "step": step, "split": split, "image_size": image_size}))
    else:
        print(
            f"{scorer.name} on {evaluation.data}/{split} at step {step}, {image_size} px, "
            f"{metrics['count']} images: top-1 {100 * metrics['top1']:.2f} %, "
            f"top-5 {100 * metrics['top5']:.2f} %, loss {metrics['loss']:.4f}"
        )


def _restored(shapes: TrainState, parts: Collection[str], step: int, mesh: Mesh) -> TrainState:
    """Returns a state of which some parts are a checkpoint's; the others stay shapes."""
    arrays = read_parts(WORKDIR.value, step, parts)
    trees = {name: getattr(shapes, name) for name in parts}
    leaves, structure = jax.tree_util.tree_flatten_with_path(trees)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    found = jax.tree.unflatten(structure, [arrays[path] for path in paths])
    return dataclasses.replace(shapes, **shard_state(found, mesh))


if __name__ == "__main__":
    cli.run(main, several_processes=True)
