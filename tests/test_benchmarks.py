"""The benchmarks from the command line; `step` on a bare machine, without TensorFlow."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

WITHOUT_DATA_LIBRARIES = (
    "import runpy, sys; "
    "sys.modules.update(dict.fromkeys(['tensorflow', 'tensorflow_datasets', 'clu'])); "
    "runpy.run_module('effnetv2_jax.benchmark', run_name='__main__', alter_sys=True)"
)


def test_the_step_is_timed_without_tensorflow():
    arguments = [
        "step",
        "--model=efficientnetv2-tiny",
        "--image_size=16",
        "--batch_size=8",
        "--repeats=5",
    ]
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_DATA_LIBRARIES, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "first gradients" in result.stdout
    assert "(median of 5, " in result.stdout


def run_input(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "effnetv2_jax.benchmark", "input", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_input_pipeline_is_timed_step_by_step():
    result = run_input(
        "--sizes=16,24", "--jpeg_size=80,60", "--augmentation=cutout", "--num_batches=2",
        "--batch_size=8",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    *_, head, _, first, second = result.stdout.splitlines()
    for name in ("images/s", "entropy", "decode", "resize", "augment"):
        assert name in head
    assert first.startswith("| 16 | 5 |")
    assert second.startswith("| 24 | 10 |")
    shares = [int(cell.split("(")[1].rstrip("%) ")) for cell in first.split("|")[5:10]]
    assert 98 <= sum(shares) <= 102


def test_the_preview_has_a_row_of_images_per_stage(tmp_path):
    picture = tmp_path / "folder" / "preview.png"
    result = run_input(
        "--sizes=16,24,32", "--columns=4", "--augmentation=none", f"--preview={picture}"
    )
    assert result.returncode == 0, result.stderr
    image = np.asarray(Image.open(picture).convert("RGB"))
    # Of 1.2 inches at 150 dots, without the title and the names: nowhere white, as paper is.
    cells = image[60:, 180:].reshape(3, 180, 4, 180, 3)[:, 20:160, :, 20:160]
    assert (cells.min(axis=(1, 3)) < 200).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes=128,x"], "error: --sizes must be some numbers from 1 on"),
        (["--jpeg_size=5"], "error: --jpeg_size must be 2 numbers"),
        (["--dataset=digit"], "error: unknown data set 'digit': did you mean digits?"),
        (["--augmentation=rand"], "error: unknown augmentation 'rand'"),
        (["--preview=/proc/x.png", "--sizes=8"], "error: preview '/proc/x.png' cannot be written"),
        (["128"], "error: unexpected argument '128'"),
    ],
)
def test_what_cannot_be_used_is_named(arguments, message):
    result = run_input(*arguments)
    assert result.returncode
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_benchmark_is_named():
    command = [sys.executable, "-m", "effnetv2_jax.benchmark", "inputs"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "unknown benchmark 'inputs': did you mean input? allowed are" in result.stderr
