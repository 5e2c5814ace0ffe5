"""Evaluates a run: ``python -m effnetv2_jax.evaluate --workdir=DIR``.

Every example of the split is counted once; by default with the EMA weights at the test size.
"""

import json
import pathlib

from absl import flags

from effnetv2_jax.runtime import config as programs
from effnetv2_jax.runtime import hosts
from effnetv2_jax.training import evaluation
from effnetv2_jax.training.observing import report
from effnetv2_jax.training.survival.checkpoint import Checkpoints

WORKDIR = flags.DEFINE_string("workdir", None, "Of the run.", required=True)
SPLIT = flags.DEFINE_string("split", None, "Split to evaluate; the config's by default.")
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Side in px; the config's by default.", lower_bound=1
)
EMA = flags.DEFINE_bool("ema", True, "Use the averaged weights and batch statistics.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "newest", "newest, best (by the evaluations of the run), or a step that was kept."
)
JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def main() -> None:
    config = programs.read_config(WORKDIR.value)
    # The network stays the run's: a ViT, which is made for one size, refuses another.
    image_size = config.eval_image_size if IMAGE_SIZE.value is None else IMAGE_SIZE.value
    split = SPLIT.value or config.data.eval_split
    programs.agree(
        config,
        workdir=WORKDIR.value,
        split=split,
        image_size=image_size,
        ema=EMA.value,
        checkpoint=CHECKPOINT.value,
    )
    run = programs.build(config)
    scores = report.read_scores(pathlib.Path(WORKDIR.value).expanduser() / "metrics.jsonl")
    checkpoints = Checkpoints(WORKDIR.value, scores=scores, read_only=True)
    step = checkpoints.choose(CHECKPOINT.value)
    state = checkpoints.restore(run.state_shapes, run.mesh, step)
    params, batch_stats = (
        (state.ema_params, state.ema_batch_stats)
        if EMA.value
        else (state.params, state.batch_stats)
    )
    batches = run.eval_batches(split, image_size)
    metrics = evaluation.evaluate(run.eval_step, params, batch_stats, batches, run.mesh)
    assert metrics is not None  # nobody can stop it
    results: dict[str, float | str] = {
        **metrics,
        "step": int(state.step),
        "split": split,
        "image_size": image_size,
    }
    if not hosts.is_first():
        return
    if JSON.value:
        print(json.dumps(results))
    else:
        print(
            f"{run.name} on {run.source.name}/{split} at step {results['step']}, "
            f"{image_size} px, {results['count']} images: "
            f"top-1 {100 * results['top1']:.2f} %, top-5 {100 * results['top5']:.2f} %, "
            f"loss {results['loss']:.4f}"
        )


if __name__ == "__main__":
    programs.run(main)
