"""The programs as a user runs them: a run, a killed and resumed run, an evaluation, mistakes."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from effnetv2_jax.data.sources.registry import get_source
from effnetv2_jax.training.observing import report
from effnetv2_jax.training.survival.checkpoint import find_damage
from tests import xla_flags
from tests.odd_names import ODD

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# A network that compiles in seconds, four stages of a few steps and of two image sizes.
SMALL = [
    "--config=configs/digits.py",
    "--config.model.name=efficientnetv2-tiny",
    "--config.schedule.image_size=(16,17)",
    "--config.batch_size=96",
    "--config.epochs=4",
    "--config.eval_image_size=17",
    "--config.log_every_steps=4",
    "--config.checkpoint.every_steps=5",
    "--config.evals.often.every_steps=25",
    "--config.evals.often.weights=raw",
    "--config.evals.often.split=test[:60]",
]
STEPS = 4 * 1437 // 96


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    get_source("digits", str(directory))
    return directory


def command(program, *arguments):
    return [sys.executable, "-m", f"effnetv2_jax.{program}", *arguments]


def environment(data_dir, devices=1):
    """Returns the environment of a program that compiles quickly, as the tests do."""
    flags = xla_flags.for_devices(devices)
    return os.environ | {"TFDS_DATA_DIR": str(data_dir), "XLA_FLAGS": flags}


def start(data_dir, program, *arguments, **changes):
    """Runs a program to its end; ``changes`` are changes to the environment."""
    return subprocess.run(
        command(program, *arguments),
        cwd=ROOT,
        env=environment(data_dir) | changes,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """A finished run: its workdir, and the finished process."""
    workdir = tmp_path_factory.mktemp("runs") / "new" / ODD
    result = start(data_dir, "train", *SMALL, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return workdir, result


def steps_of(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_a_run_leaves_metrics_checkpoints_and_a_report(finished):
    workdir, result = finished
    rows = report.read_history(workdir / "metrics.jsonl")
    evaluations = [row for row in rows if "eval/top1" in row]
    borders = [STEPS * i // 4 for i in range(1, 5)]
    assert [row["step"] for row in evaluations] == borders
    assert all(row["eval/count"] == 360 for row in evaluations)
    often = [row["step"] for row in rows if row.get("often/count") == 60]
    assert often == [25, 50, STEPS]
    sizes = [row["train/image_size"] for row in rows if "train/image_size" in row]
    assert sorted(set(sizes)) == [16, 17]
    assert {int(row["step"]) for row in rows} >= {4, 8, *borders}
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < losses[0]
    assert (workdir / "report.png").stat().st_size > 10_000
    text = (workdir / "report.md").read_text()
    assert "efficientnetv2-tiny" in text
    assert f"{100 * evaluations[-1]['eval/top1']:.2f} %" in text
    # The recipe says auto.
    assert json.loads((workdir / "config.json").read_text())["model"]["dtype"] == "float32"
    assert "stem/conv/kernel" in (workdir / "parameters.txt").read_text()
    assert list(workdir.glob("events.out.tfevents.*"))
    status = json.loads((workdir / "status.json").read_text())
    assert (status["state"], status["step"], status["stage"]) == ("finished", STEPS, 4)
    assert status["last_checkpoint"] == status["total_steps"] == STEPS
    assert status["last_accuracy"] == evaluations[-1]["eval/top1"]
    assert {name: x["step"] for name, x in status["evaluations"].items()} == {
        "eval": STEPS,
        "often": STEPS,
    }
    assert f"often: top-1 {100 * rows[-1]['often/top1']:.2f} %" in result.stdout
    assert "top-1" in result.stdout
    # In a log, a line every n steps, and nothing from the libraries below.
    assert f"[{borders[-1]}]" in result.stderr
    assert "orbax" not in result.stderr
    assert "Traceback" not in result.stderr


def test_the_same_command_on_a_finished_run_only_reports(finished, data_dir):
    workdir, _ = finished
    before = steps_of(workdir)
    result = start(data_dir, "train", *SMALL, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    assert "stage" not in result.stderr
    assert steps_of(workdir) == before
    # The last three, and the best of those that were evaluated when the last one was saved.
    assert before[-3:] == [50, 55, STEPS]
    assert len(before) <= 4


def test_after_ctrl_c_a_run_is_saved(data_dir, tmp_path):
    """tests/faults has all other ways to end a run, and how it goes on."""
    process = subprocess.Popen(
        command("train", *SMALL, f"--workdir={tmp_path}"),
        cwd=ROOT,
        env=environment(data_dir),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    wanted = tmp_path / "checkpoints" / "10"
    while not wanted.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "SIGINT: saving and stopping; another one ends the run at once" in stderr
    assert "Traceback" not in stderr
    saved = steps_of(tmp_path)[-1]
    assert find_damage(tmp_path / "checkpoints" / str(saved)) is None
    assert json.loads((tmp_path / "status.json").read_text())["last_checkpoint"] == saved >= 10


def evaluations(workdir):
    """Returns the lines of the evaluation eval, by step."""
    rows = report.read_history(workdir / "metrics.jsonl")
    return {int(row["step"]): row for row in rows if "eval/top1" in row}


def test_evaluate_repeats_the_best_evaluation(finished, data_dir):
    workdir, _ = finished
    result = start(data_dir, "evaluate", f"--workdir={workdir}", "--checkpoint=best", "--json")
    assert result.returncode == 0, result.stderr
    results = json.loads(result.stdout)
    known = {step: row for step, row in evaluations(workdir).items() if step in steps_of(workdir)}
    row = known[results["step"]]
    assert row["eval/top1"] == max(row["eval/top1"] for row in known.values())
    assert results["top1"] == row["eval/top1"]
    assert results["top5"] == row["eval/top5"]
    assert results["count"] == 360


def test_evaluate_repeats_an_evaluation_by_its_name(finished, data_dir):
    workdir, _ = finished
    # On devices that divide neither the batch of training nor that of evaluation.
    result = subprocess.run(
        command("evaluate", f"--workdir={workdir}", "--eval=often", "--json"),
        cwd=ROOT,
        env=environment(data_dir, devices=7),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    results = json.loads(result.stdout)
    last = report.read_history(workdir / "metrics.jsonl")[-1]
    assert {f"often/{name}": results[name] for name in ("top1", "top5", "count")}.items() <= (
        last.items()
    )


def test_evaluate_takes_another_split_size_checkpoint_and_the_raw_weights(finished, data_dir):
    workdir, _ = finished
    result = start(
        data_dir, "evaluate", f"--workdir={workdir}", "--split=train", "--image_size=24", "--noema",
        "--checkpoint=50",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "digits/train at step 50" in result.stdout
    assert "24 px, 1437 images" in result.stdout


def test_evaluate_writes_a_report_and_compares_sizes(finished, data_dir, tmp_path):
    workdir, _ = finished
    folder = tmp_path / "report"
    # On several devices, of which the last has only padding.
    result = subprocess.run(
        command("evaluate", f"--workdir={workdir}", f"--report={folder}", "--image_sizes=16",
                "--json"),
        cwd=ROOT,
        env=environment(data_dir, devices=7),
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["image_size"] for row in rows] == [16, 17]
    last = evaluations(workdir)[STEPS]
    assert {name: rows[1][name] for name in ("top1", "top5", "count")} == {
        name: last[f"eval/{name}"] for name in ("top1", "top5", "count")
    }
    assert {x.name for x in folder.iterdir()} == {
        *("report.md", "classes.csv", "confusions.csv", "examples.csv"),
        *("confusions.png", "mistakes.png", "calibration.png", "sizes.png"),
    }
    with (folder / "examples.csv").open(encoding="utf-8") as file:
        examples = list(csv.DictReader(file))
    assert [int(x["class"]) for x in examples] == load_digits().target[1437:].tolist()
    assert examples[7]["example"] == "example 7 of test of digits"
    right = [x["class"] == x["taken_for"] for x in examples]
    assert sum(right) / 360 == pytest.approx(rows[1]["top1"])
    with (folder / "classes.csv").open(encoding="utf-8") as file:
        assert sum(int(x["correct"]) for x in csv.DictReader(file)) == sum(right)
    text = (folder / "report.md").read_text()
    assert f"top-1 {100 * rows[1]['top1']:.2f} %" in text
    assert f"error: {100 * rows[1]['ece']:.2f} %" in text


def test_a_report_that_cannot_be_written_is_one_sentence(finished, data_dir):
    workdir, _ = finished
    result = start(data_dir, "evaluate", f"--workdir={workdir}", "--report=/proc/report")
    assert result.returncode == 2
    assert "report '/proc/report' cannot be written" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_an_evaluation_that_is_not_finite_is_an_error(finished, data_dir):
    spoilt = """
import jax, effnetv2_jax.evaluate as program
read = program._restored
spoil = lambda x: x * float("nan") if isinstance(x, jax.Array) else x
program._restored = lambda *arguments: jax.tree.map(spoil, read(*arguments))
program.cli.run(program.main, several_processes=True)
"""
    result = subprocess.run(
        [sys.executable, "-c", spoilt, f"--workdir={finished[0]}", "--json"],
        cwd=ROOT,
        env=environment(data_dir),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert f"error: at step {STEPS}, the loss on digits/test is not finite (nan)" in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout


# tests/runtime/test_cli.py has mistakes in flags.
MISTAKES = {
    "model": ("--config.model.name=efficientnetv2-ss", "unknown model 'efficientnetv2-ss'"),
    "config": ("--config=configs/none.py", "config file 'configs/none.py' does not exist"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake, data_dir, tmp_path):
    argument, message = MISTAKES[mistake]
    result = start(data_dir, "train", *SMALL, argument, f"--workdir={tmp_path / 'run'}")
    assert_one_sentence(result, message)
    assert not (tmp_path / "run").exists()


def assert_one_sentence(result, message):
    assert result.returncode not in (0, None)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_workdir_of_another_config_is_refused_with_the_fields(finished, data_dir):
    workdir, _ = finished
    result = start(
        data_dir, "train", *SMALL, "--config.seed=1", "--config.label_smoothing=0",
        "--config.log_every_steps=7", f"--workdir={workdir}",
    )  # fmt: skip
    assert_one_sentence(result, "seed (there 0, now 1)")
    assert "label_smoothing (there 0.1, now 0.0)" in result.stderr
    assert "log_every_steps" not in result.stderr


def test_an_unwritable_workdir_is_named(data_dir):
    result = start(data_dir, "train", *SMALL, "--workdir=/proc/run")
    assert_one_sentence(result, "workdir '/proc/run' cannot be written")


def test_a_batch_that_the_devices_do_not_divide_is_named(data_dir, tmp_path):
    arguments = command("train", *SMALL, "--config.batch_size=90", f"--workdir={tmp_path / 'run'}")
    result = subprocess.run(
        arguments,
        cwd=ROOT,
        env=environment(data_dir, devices=8),
        capture_output=True,
        text=True,
        check=False,
    )
    assert_one_sentence(result, "batch_size must be a multiple of the number of devices (8)")


def test_evaluating_what_is_not_a_run_is_named(data_dir, tmp_path):
    result = start(data_dir, "evaluate", f"--workdir={tmp_path}")
    assert_one_sentence(result, "holds no run")


def test_evaluating_a_run_without_a_checkpoint_is_named(finished, data_dir, tmp_path):
    workdir, _ = finished
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    result = start(data_dir, "evaluate", f"--workdir={tmp_path}")
    assert_one_sentence(result, "holds no checkpoint yet")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_builder_is_a_tfds_builder(data_dir):
    """The digits on disk are a data set like any other to TFDS."""
    builder = tfds.builder_from_directory(next(data_dir.glob("digits/*")))
    assert builder.info.splits["train"].num_examples == 1437


@pytest.mark.slow
def test_the_digits_recipe_learns_other_peoples_digits(data_dir, tmp_path):
    """The last fifth of the training digits has other writers; the test set stays untouched."""
    result = start(
        data_dir, "train", "--config=configs/digits.py", f"--workdir={tmp_path}",
        "--config.data.train_split=train[:80%]", "--config.data.eval_split=train[80%:]",
        # Long enough to be compiled as users have it.
        XLA_FLAGS="",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    history = report.read_history(tmp_path / "metrics.jsonl")
    last = next(row for row in reversed(history) if "eval/top1" in row)
    assert last["eval/count"] == 287
    assert last["eval/top1"] >= 0.96


def test_your_own_images_with_a_broken_one_among_them(tmp_path, data_dir):
    """The page docs/own_images.md, in small."""
    images, rng = tmp_path / "images", np.random.default_rng(0)
    for label, name in enumerate(["cat", "dog"]):
        (images / "train" / name).mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(100 * label, 100 * label + 100, (40, 30, 3)).astype(np.uint8)
            form = ["jpg", "png", "webp"][i % 3]
            Image.fromarray(pixels).save(images / "train" / name / f"{i}.{form}")
    broken = images / "train" / "cat" / "broken.JPG"
    broken.write_bytes((images / "train" / "cat" / "0.jpg").read_bytes()[:300])
    small = [
        "--config=configs/folder.py",
        f"--config.data.name=folder:{images}",
        "--config.model.name=efficientnetv2-tiny",
        "--config.schedule.num_stages=1",
        "--config.schedule.image_size=(24,24)",
        "--config.eval_image_size=24",
        "--config.batch_size=8",
        "--config.eval_batch_size=4",
        "--config.epochs=2",
        f"--workdir={tmp_path / 'run'}",
    ]
    result = start(data_dir, "train", *small, "--config.data.max_bad_fraction=0")
    assert result.returncode == 2
    assert str(broken) in result.stderr
    assert "but data.max_bad_fraction allows 0, here 0" in result.stderr.splitlines()[-1]
    # The advice is followed in the same workdir, where nothing is trained yet.
    result = start(data_dir, "train", *small)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(f"left out, as it cannot be decoded: {broken}") >= 1
    assert (tmp_path / "run" / "class_names.txt").read_text() == "cat\ndog\n"
    # Evaluation needs only its own images, and takes the classes from the run.
    (images / "train").rename(images / "test")
    (images / "test" / "cat").rename(tmp_path / "cat")
    result = start(data_dir, "evaluate", f"--workdir={tmp_path / 'run'}", "--split=test", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["count"] == 24
