"""Evaluates a run: ``python -m effnetv2_jax.evaluate --workdir=DIR``.

Every example of the split counts once. By default this repeats the run's own evaluation.
``--weights=PATH_OR_NAME --data=NAME`` evaluates anybody's weights instead, on a data set that has
their classes.
"""

from effnetv2_jax.runtime import extras

extras.need_for_program("train")

import dataclasses
import json
from typing import Any

import jax
from absl import flags, logging
from ml_collections import ConfigDict

from effnetv2_jax.models.registry import family_of
from effnetv2_jax.runtime import cli, hosts, recipe
from effnetv2_jax.runtime.config import agree, build, make_evaluations
from effnetv2_jax.runtime.errors import UsageError, unknown_name
from effnetv2_jax.runtime.files import local_path
from effnetv2_jax.runtime.run import Run
from effnetv2_jax.runtime.workdir import read_class_names, read_config
from effnetv2_jax.training.mesh import shard_state
from effnetv2_jax.training.observing import report
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.survival.checkpoint import Checkpoints
from effnetv2_jax.weights import Weights, read_weights

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "Weights to evaluate instead of a run: file, name of published weights, or address.",
)
DATA = flags.DEFINE_string("data", None, "Data set for --weights, such as folder:PATH.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of the files of --data, if it needs one.")
ARCHITECTURE = flags.DEFINE_string(
    "architecture", None, "timm's name of the network of --weights, if nothing else says it."
)
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
    weights = None
    if WORKDIR.value and not WEIGHTS.value:
        config, class_names = read_config(WORKDIR.value), read_class_names(WORKDIR.value)
    elif WEIGHTS.value and DATA.value and not WORKDIR.value:
        weights = read_weights(WEIGHTS.value, architecture=ARCHITECTURE.value)
        config, class_names = _config_for(weights), weights.class_names
    else:
        raise UsageError("give either --workdir, or --weights and --data")
    if not config.evals:
        config.evals = {"eval": {}}
    evaluations = {evaluation.name: evaluation for evaluation in make_evaluations(config)}
    if EVAL.value is not None and EVAL.value not in evaluations:
        raise unknown_name("eval", EVAL.value, evaluations)
    evaluation = evaluations[EVAL.value or next(iter(evaluations))]
    # The network stays the run's: a ViT, which is made for one size, refuses another.
    averaged = {True: "ema", False: "raw", None: None}[EMA.value]
    changes: dict[str, Any] = {
        "split": SPLIT.value,
        "image_size": IMAGE_SIZE.value,
        "weights": averaged,
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
    run = build(config, only=evaluation, class_names=class_names)
    if weights and run.source.num_classes != weights.num_classes:
        raise UsageError(
            f"{WEIGHTS.value!r} has {weights.num_classes} classes, and {evaluation.data} has "
            f"{run.source.num_classes}"
        )
    logging.info(
        "images: input family %s of the run's config, %d px (--image_size changes it)",
        run.preprocessing.name,
        evaluation.image_size,
    )
    state, step = _state(run, evaluation.name)
    metrics = run.evaluate(evaluation, state)
    assert metrics is not None  # nothing can stop it
    split, image_size = evaluation.split, evaluation.image_size
    if not hosts.is_first():
        return
    if JSON.value:
        print(json.dumps({**metrics, "step": step, "split": split, "image_size": image_size}))
    else:
        print(
            f"{run.name} on {evaluation.data}/{split} at {WEIGHTS.value or f'step {step}'}, "
            f"{image_size} px, "
            f"{metrics['count']} images: top-1 {100 * metrics['top1']:.2f} %, "
            f"top-5 {100 * metrics['top5']:.2f} %, loss {metrics['loss']:.4f}"
        )


def _config_for(weights: Weights) -> ConfigDict:
    """Returns the config of a run that begins with the weights."""
    spec, config = weights.spec, recipe.common_config()
    config.model.update({name: getattr(spec, name) for name in family_of(spec).as_trained})
    config.model.update({"name": spec.name, "dtype": "float32"})
    config.init_weights, config.init_architecture = WEIGHTS.value, ARCHITECTURE.value
    config.data.update({"name": DATA.value, "dir": DATA_DIR.value})
    config.data.preprocessing = spec.preprocessing
    config.eval_image_size = spec.eval_size
    config.batch_size = config.eval_batch_size = 64 * jax.device_count()
    return config


def _state(run: Run, evaluation: str) -> tuple[TrainState, int]:
    """Returns the state to evaluate on the mesh, and its step."""
    if WEIGHTS.value:
        state = run.first_state()
        return shard_state(state, run.training.mesh), 0
    folder = local_path(WORKDIR.value or "")
    scores = report.read_scores(folder / "metrics.jsonl", evaluation)
    checkpoints = Checkpoints(folder, scores=scores, read_only=True)
    step = checkpoints.choose(CHECKPOINT.value)
    state = checkpoints.restore(run.training.shapes, run.training.mesh, step)
    checkpoints.close()
    return state, step


if __name__ == "__main__":
    cli.run(main, several_processes=True)
