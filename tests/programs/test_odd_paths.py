"""A whole run on folders, classes and files whose names some library takes for something else."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from effnetv2_jax.weights import load_model
from tests import xla_flags
from tests.odd_names import NAMES, ODD

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# A class is one line of class_names.txt, and one folder.
CLASSES = sorted(name for name in NAMES.values() if name.isprintable() and "/" not in name)


def command(program, *arguments):
    return [sys.executable, "-m", f"effnetv2_jax.{program}", *arguments]


def run(program, *arguments, **changes):
    result = subprocess.run(
        command(program, *arguments),
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": xla_flags.for_devices(1)} | changes,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_a_run_is_written_killed_resumed_evaluated_predicted_from_and_converted(tmp_path):
    images, workdir = tmp_path / f"images {ODD}" / NAMES["no text"], tmp_path / f"run {ODD}"
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for label, name in enumerate(CLASSES):
            (images / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(20 * label, 20 * label + 60, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images / split / name / f"{i} [é]*?%20#.png")
    arguments = (
        "--config=configs/folder.py",
        f"--config.data.name=folder:{images}",
        "--config.model.name=efficientnetv2-tiny",
        "--config.model.dtype=float32",
        "--config.schedule.num_stages=1",
        "--config.schedule.image_size=(16,16)",
        "--config.eval_image_size=16",
        "--config.batch_size=16",
        "--config.epochs=5",
        "--config.log_every_steps=2",
        "--config.checkpoint.every_steps=2",
        "--config.checkpoint.keep_every_steps=2",
        f"--workdir={workdir}",
    )
    with subprocess.Popen(
        command("train", *arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as first:
        deadline = time.monotonic() + 300
        while not (workdir / "checkpoints" / "4").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        first.kill()
    before = set(os.listdir(workdir / "checkpoints"))
    run("train", *arguments)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "train/loss" in row]
    assert steps == list(range(2, 5 * len(CLASSES) + 1, 2))
    assert {"2", "4"} <= before < set(os.listdir(workdir / "checkpoints"))
    last = next(row for row in reversed(rows) if "eval/loss" in row)
    evaluated = json.loads(run("evaluate", f"--workdir={workdir}", "--checkpoint=newest", "--json"))
    assert evaluated["loss"] == pytest.approx(last["eval/loss"], rel=1e-6)

    picked = images / "val" / CLASSES[0]
    converted = tmp_path / f"{ODD}.safetensors", tmp_path / f"weights {ODD}"
    for weights in converted:
        run("convert", f"--from={workdir}", f"--to={weights}")
        assert load_model(str(weights))[1].class_names == tuple(CLASSES)
    tables = [
        run("predict", f"--weights={weights}", str(picked), PYTHONIOENCODING="ascii")
        for weights in (workdir, *converted)
    ]
    assert tables[0] == tables[1] == tables[2]
    assert tables[0].isascii()
    assert tables[0].count(r"[\xe9]*?%20#.png") == len(list(picked.iterdir()))
