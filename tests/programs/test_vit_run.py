"""The programs with a network that takes one image size alone."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from effnetv2_jax.data.sources.registry import get_source
from effnetv2_jax.weights import load_model

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SMALL = [
    "--config=configs/digits.py",
    "--config.model.name=deit-ti",
    "--config.eval_image_size=32",
    "--config.epochs=0.3",
]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    get_source("digits", str(data_dir))

    def run(program, *arguments):
        return subprocess.run(
            [sys.executable, "-m", f"effnetv2_jax.{program}", *arguments],
            cwd=ROOT,
            env=os.environ | {"TFDS_DATA_DIR": str(data_dir), "XLA_FLAGS": ""},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return run


@pytest.mark.slow
def test_a_run_at_one_size(start, tmp_path):
    result = start("train", *SMALL, "--config.schedule.image_size=(32,32)", f"--workdir={tmp_path}")
    assert result.returncode == 0, result.stderr
    result = start("evaluate", f"--workdir={tmp_path}", "--json")
    assert json.loads(result.stdout)["count"] == 360
    model, loaded = load_model(str(tmp_path))
    assert model.spec.eval_size == 32
    assert "a run of deit-ti on digits" in str(loaded)
    result = start("evaluate", f"--workdir={tmp_path}", "--image_size=48")
    assert result.returncode == 2
    assert "deit-ti takes images of 32 × 32 px" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_schedule_of_other_sizes_is_one_sentence(start, tmp_path):
    result = start("train", *SMALL, "--config.schedule.image_size=(48,48)", f"--workdir={tmp_path}")
    assert result.returncode == 2
    assert "eval_size=32, got 48 × 48" in result.stderr.splitlines()[-1]
