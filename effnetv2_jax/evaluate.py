"""Evaluates a run: ``python -m effnetv2_jax.evaluate --workdir=DIR``.

Every example of the split counts once. By default this repeats the run's own evaluation.
"""

from effnetv2_jax.runtime import extras

extras.need_for_program("train")

import dataclasses
import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
from absl import flags, logging
from jax.sharding import Mesh

from effnetv2_jax.inspection import report as inspection
from effnetv2_jax.predictions.request import class_names
from effnetv2_jax.runtime import cli, hosts
from effnetv2_jax.runtime.config import agree, build_scorer, make_evaluations
from effnetv2_jax.runtime.errors import LARGEST_SIDE, UsageError, unknown_name
from effnetv2_jax.runtime.files import local_path
from effnetv2_jax.runtime.workdir import read_class_names, read_config
from effnetv2_jax.training.mesh import abstract_batch, shard_state
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
IMAGE_SIZES = flags.DEFINE_list(
    "image_sizes",
    None,
    "Sides of the images in px, such as 128,160,192, for accuracy against image size.",
)
JSON = flags.DEFINE_bool("json", False, "Print one JSON object, or one a line for --image_sizes.")
# A flag that may stand without a value, as one of booleans may.
flags.DEFINE_flag(
    flags.Flag(
        flags.ArgumentParser(),
        flags.ArgumentSerializer(),
        "report",
        "false",
        "Also write a report: accuracy of each class, confusions, the worst mistakes, calibration. "
        "--report=DIR names its folder; --report alone means the folder evaluation in the workdir.",
        boolean=True,
    )
)


def main() -> None:
    config = read_config(WORKDIR.value)
    if not config.evals:
        config.evals = {"eval": {}}
    evaluations = {evaluation.name: evaluation for evaluation in make_evaluations(config)}
    if EVAL.value is not None and EVAL.value not in evaluations:
        raise unknown_name("eval", EVAL.value, evaluations)
    evaluation = evaluations[EVAL.value or next(iter(evaluations))]
    own_size = evaluation.image_size
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
        image_sizes=IMAGE_SIZES.value,
        report=flags.FLAGS.report,
    )
    sizes = _sizes(evaluation.image_size)
    scorer = build_scorer(config, evaluation, read_class_names(WORKDIR.value))
    mesh, shapes = scorer.training.mesh, scorer.training.shapes
    for size in set(sizes) - {own_size}:
        # A network that does not take a size says so before the others are evaluated.
        label_shape = scorer.sources[evaluation.data].label_shape
        batch = abstract_batch(size, mesh.size, label_shape, mesh)
        jax.eval_shape(scorer.training.eval_step, *evaluation.choose_weights(shapes), batch)
    # Padding does not count, so that any number of devices will do.
    batch_size = -(-evaluation.batch_size // mesh.size) * mesh.size
    evaluation = dataclasses.replace(evaluation, batch_size=batch_size)
    folder = local_path(WORKDIR.value)
    asked = flags.FLAGS.report
    report_folder = None if asked == "false" else folder / "evaluation"
    if asked not in ("false", "true"):
        report_folder = local_path(asked)
    if report_folder is not None:
        with hosts.first_alone("report"):
            if hosts.is_first():
                inspection.make_folder(report_folder)
    scores = report.read_scores(folder / "metrics.jsonl", evaluation.name)
    checkpoints = Checkpoints(WORKDIR.value, scores=scores, read_only=True)
    step = checkpoints.choose(CHECKPOINT.value)
    checkpoints.close()
    logging.info(
        "images: input family %s of the run's config, %s px (--image_size changes it)",
        scorer.preprocessing.name,
        ", ".join(map(str, sizes)),
    )
    # Nothing of the optimizer is read, and nothing is split over devices as training split it.
    state = _restored(shapes, evaluation.parts, step, mesh)
    answers, by_size = None, {}
    for size in sizes:
        at_size = dataclasses.replace(evaluation, image_size=size)
        if report_folder is not None and size == evaluation.image_size:
            answers = scorer.answer(at_size, state)
            metrics: dict[str, float] | None = answers.metrics()
        else:
            metrics = scorer.evaluate(at_size, state)
        assert metrics is not None  # nothing can stop it
        if not math.isfinite(metrics["loss"]):
            raise UsageError(
                f"at step {step}, the loss on {evaluation.data}/{evaluation.split} is not finite "
                f"({metrics['loss']}): --checkpoint chooses another checkpoint"
            )
        by_size[size] = metrics
    if not hosts.is_first():
        return
    split = evaluation.split
    name = f"{scorer.name} on {evaluation.data}/{split} at step {step}"
    extra: dict[str, float] = {}
    if answers is not None and report_folder is not None:
        source = scorer.sources[evaluation.data]
        subject = inspection.Subject(
            title=name,
            split=source.split(split),
            class_names=class_names(source.class_names, source.num_classes),
            image_size=evaluation.image_size,
            own_size=own_size,
            trained_sizes=tuple(config.schedule.image_size),
        )
        extra["ece"] = inspection.write_report(report_folder, subject, answers, by_size)
    for size, metrics in by_size.items():
        if JSON.value:
            row = {**metrics, "step": step, "split": split, "image_size": size}
            print(json.dumps(row | (extra if size == evaluation.image_size else {})))
        elif len(by_size) == 1:
            print(f"{name}, {size} px, {_sentence(metrics)}")
    if len(by_size) > 1 and not JSON.value:
        count = next(iter(by_size.values()))["count"]
        print(f"{name}, {count} images")
        print("   px    top-1    top-5     loss")
        for size, x in by_size.items():
            print(f"{size:5d} {100 * x['top1']:6.2f} % {100 * x['top5']:6.2f} % {x['loss']:8.4f}")
    if report_folder is not None and not JSON.value:
        page = report_folder / "report.md"
        print(f"calibration error {100 * extra['ece']:.2f} %; report: {page}")


def _sizes(own: int) -> list[int]:
    """Returns the image sizes to evaluate, in rising order."""
    if IMAGE_SIZES.value is None:
        return [own]
    sizes = {own} if flags.FLAGS.report != "false" else set()
    for text in IMAGE_SIZES.value:
        if not re.fullmatch(r"\s*\d{1,9}\s*", text) or not 1 <= int(text) <= LARGEST_SIDE:
            raise UsageError(
                f"--image_sizes must be whole numbers from 1 to {LARGEST_SIDE} with commas "
                f"between, such as 128,160, got {','.join(IMAGE_SIZES.value)!r}"
            )
        sizes.add(int(text))
    if not sizes:
        raise UsageError("--image_sizes must have at least one size, such as 128,160")
    return sorted(sizes)


def _sentence(metrics: Mapping[str, float]) -> str:
    return (
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
