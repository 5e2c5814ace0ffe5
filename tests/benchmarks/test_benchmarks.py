"""The benchmarks from the command line; `step` on a bare machine, without TensorFlow."""

from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from effnetv2_jax.benchmarks.timing import input as input_pipeline
from effnetv2_jax.runtime.errors import UsageError
from tests.benchmarks.commands import run

DATA_LIBRARIES = ("tensorflow", "tensorflow_datasets", "clu")


def test_the_step_is_timed_without_tensorflow():
    size = ("--image_size=16", "--batch_size=8", "--repeats=5")
    done = run("step", "--model=efficientnetv2-tiny", *size, without=DATA_LIBRARIES)
    assert done.returncode == 0, done.stderr
    assert "compiled in" in done.stdout
    assert "(median of 5, " in done.stdout and "MB moved an image" in done.stdout


def test_a_library_that_is_missing_is_one_sentence():
    done = run("input", without=DATA_LIBRARIES)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "error: benchmark input needs tensorflow, which is not installed: "
        "pip install 'effnetv2_jax[train]'\n"
    )


def run_input(**values):
    flags.FLAGS.mark_as_parsed()
    with flagsaver.as_parsed(**values):
        input_pipeline.main()


def test_the_input_pipeline_is_timed_step_by_step(monkeypatch, capsys):
    monkeypatch.setattr(input_pipeline, "REPEATS", SimpleNamespace(value=1))
    run_input(sizes="16", jpeg_size="80,60", augmentation="cutout", num_batches="2", batch_size="8")
    *_, head, _, first = capsys.readouterr().out.splitlines()
    for name in ("images/s", "entropy", "decode", "resize", "augment"):
        assert name in head
    assert [cell.strip() for cell in first.split("|")[1:3]] == ["16", "5"]
    shares = [int(cell.split("(")[1].rstrip("%) ")) for cell in first.split("|")[5:10]]
    assert 98 <= sum(shares) <= 102


def test_the_preview_has_a_row_of_images_per_stage(tmp_path):
    picture = tmp_path / "folder" / "preview.png"
    run_input(
        sizes="16,24,32",
        jpeg_size="80,60",
        columns="4",
        augmentation="none",
        preview=str(picture),
    )
    image = np.asarray(Image.open(picture).convert("RGB"))
    drawn = image.min(axis=2) < 255
    # White paper parts the title and three rows, and four columns beside the names.
    for lines, parts in ((drawn.any(axis=1), 4), (drawn[60:, 55:].any(axis=0), 4)):
        assert np.count_nonzero(np.diff(lines.astype(int)) == 1) == parts


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sizes": "128,x"}, "--sizes must be some numbers from 1 on"),
        ({"jpeg_size": "5"}, "--jpeg_size must be 2 numbers"),
        ({"dataset": "digit"}, "unknown data set 'digit': did you mean digits?"),
        ({"augmentation": "rand"}, "unknown augmentation 'rand'"),
        (
            {"preview": "/proc/x.png", "sizes": "8", "jpeg_size": "8,8"},
            "preview '/proc/x.png' cannot be written",
        ),
    ],
)
def test_what_cannot_be_used_is_named(values, message):
    with pytest.raises(UsageError) as error:
        run_input(**values)
    assert message in str(error.value)


def test_help_lists_the_benchmarks_and_the_flags_of_one():
    for arguments, expected in (
        (["--help"], "input, peers, plots, start, step"),
        (["step", "--help"], "--image_size"),
    ):
        done = run(*arguments)
        assert done.returncode == 0 and expected in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inputs"], "error: unknown benchmark 'inputs': did you mean input"),
        (["step", "128"], "error: unexpected argument '128'"),
        (["step", "--model=efficientnetv2-x", "--image_size=8"], "error: unknown model"),
    ],
)
def test_the_command_line_ends_in_one_sentence(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""
