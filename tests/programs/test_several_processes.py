"""Training and evaluation by several processes, which act as one and are stopped and resumed."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from effnetv2_jax.runtime import hosts, workdir
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training.observing import report
from launch import local_pod
from tests import tiny_run
from tests.odd_names import ODD

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CONFIG = [
    *tiny_run.CONFIG,
    *tiny_run.SGD,
    # Over all devices, because examples have other neighbours if several processes read a batch.
    "--config.model.bn_group_size=0",
    "--config.checkpoint.every_steps=3",
    "--config.evals.often.every_steps=4",
    "--config.evals.often.weights=raw",
]
STEPS = 6
EPOCHS = f"--config.epochs={(STEPS + 0.5) * 64 / 1437}"
WRITTEN = {"config.json", "class_names.txt", "parameters.txt", "report.md", "report.png"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """An empty folder: one of the first processes prepares the data for all."""
    return tmp_path_factory.mktemp("tfds")


def environment(data_dir):
    return os.environ | {"TFDS_DATA_DIR": str(data_dir)}


@contextlib.contextmanager
def pod(data_dir, processes, devices, program, *arguments):
    """The program in a local pod, in the background."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "launch.local_pod"),
            program if program.startswith("--") else f"--program=effnetv2_jax.{program}",
            *(f"--processes={processes}", f"--devices_per_process={devices}", "--", *arguments),
        ],
        cwd=ROOT,
        env=environment(data_dir),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def run(*arguments):
    """Runs a pod to its end and returns what it printed."""
    with pod(*arguments) as process:
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    return output


def losses(workdir):
    """Returns ((step, name), loss) of every line of the log and every evaluation."""
    rows = report.read_history(workdir / "metrics.jsonl")
    names = ("train", "eval", "often")
    return [
        ((int(row["step"]), name), row[f"{name}/loss"])
        for row in rows
        for name in names
        if f"{name}/loss" in row
    ]


def assert_same_losses(rows, expected):
    """Asserts that both have the same lines with the same losses, to 1e-5."""
    expected = dict(expected)
    assert {key for key, _ in rows} == expected.keys()
    assert {key for key in expected if key[1] == "often"} == {(4, "often"), (STEPS, "often")}
    for key, loss in rows:
        assert loss == pytest.approx(expected[key], rel=1e-5), key
    # Training has moved them by far more than that.
    assert max(expected.values()) > 1.001 * min(expected.values())


def test_two_processes_are_one_with_all_their_devices(data_dir, tmp_path):
    together, alone = tmp_path / ODD, tmp_path / "alone"
    output = run(data_dir, 2, 2, "train", *CONFIG, *tiny_run.QUICK, EPOCHS, f"--workdir={together}")
    run(data_dir, 1, 4, "train", *CONFIG, *tiny_run.QUICK, EPOCHS, f"--workdir={alone}")
    assert_same_losses(losses(together), losses(alone))
    # Process 0 speaks and writes for both.
    assert "[0] top-1" in output
    assert not [
        line for line in output.splitlines() if re.match(r"\[1\] .*(\.py:\d+\]|top-1|report)", line)
    ]
    assert {path.name for path in together.iterdir()} >= WRITTEN
    assert len(list(together.glob("events.*"))) == 1


def stopped(workdir, process, step, who="launch.local_pod"):
    """Sends SIGTERM when there is a checkpoint; returns what the pod printed."""
    deadline = time.monotonic() + 300
    while not (workdir / "checkpoints" / str(step)).exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if who == "launch.local_pod":
        process.send_signal(signal.SIGTERM)
    else:
        subprocess.run(["pkill", "-TERM", "-f", "--", f"{who} .*{workdir}"], check=True)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
@pytest.mark.parametrize("who", ["launch.local_pod", "--process_id=1", "nobody"])
def test_two_processes_that_are_stopped_resume_where_they_were(data_dir, tmp_path, who):
    """The stop is a signal to all, a signal to one of them, or a notice to JAX's service."""
    together, whole = tmp_path / "stopped", tmp_path / "whole"
    command = (data_dir, 2, 2, "train", *CONFIG, EPOCHS, f"--workdir={together}")
    if who == "nobody":
        program = "--program=tests.programs.train_until_notice"
        output = run(*command[:3], program, *command[4:], "--notice_after_step=3")
        assert "Reached preemption sync point" in output
    else:
        with pod(*command) as process:
            output = stopped(together, process, 3, who)
    (step,) = re.findall(r"stopped after step (\d+), which is saved", output)
    assert 3 <= int(step) < STEPS
    assert (together / "checkpoints" / step).exists()
    assert f"resuming at step {step}" in run(*command)
    steps = [step for (step, name), _ in losses(together) if name == "train"]
    assert steps == list(range(1, STEPS + 1))
    run(data_dir, 2, 2, "train", *CONFIG, EPOCHS, f"--workdir={whole}")
    assert losses(together) == losses(whole)


@pytest.mark.slow
def test_four_processes_of_eight_devices_are_one_of_thirty_two(data_dir, tmp_path):
    shapes = {"together": (4, 8), "alone": (1, 32)}
    for name, shape in shapes.items():
        run(data_dir, *shape, "train", *CONFIG, EPOCHS, f"--workdir={tmp_path / name}")
    assert_same_losses(losses(tmp_path / "together"), losses(tmp_path / "alone"))
    # What they saved in parts is read by fewer.
    workdir = f"--workdir={tmp_path / 'together'}"
    output = run(data_dir, 2, 2, "evaluate", workdir, "--json")
    (line,) = [line for line in output.splitlines() if line.startswith("[0] {")]
    results = json.loads(line.removeprefix("[0] "))
    assert results["count"] == 360
    rows = report.read_history(tmp_path / "together" / "metrics.jsonl")
    (last,) = [row for row in rows if "eval/top1" in row]
    assert results["top1"] == last["eval/top1"]
    assert results["loss"] == pytest.approx(last["eval/loss"], rel=1e-5)
    assert not [line for line in output.splitlines() if line.startswith("[1] {")]


def test_processes_that_disagree_on_the_config_name_the_field(data_dir, tmp_path):
    processes = [
        subprocess.Popen(
            [*command, *CONFIG, f"--config.batch_size={64 >> i}", f"--workdir={tmp_path / 'run'}"],
            cwd=ROOT,
            env=environment(data_dir),
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, command in enumerate(local_pod.commands("effnetv2_jax.train", [], processes=2))
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 2, stderr
        sentence = (
            "error: processes disagree on the config: batch_size (process 0: 64, process 1: 32)"
        )
        assert sentence in stderr.splitlines()
        assert "Traceback" not in stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def images(tmp_path):
    """A folder of 48 images for each process; the second one's lacks an image."""
    rng = np.random.default_rng(0)
    folders = [tmp_path / name / "images" for name in ("a", "b")]
    for label, name in enumerate(["cat", "dog"]):
        for split, count in (("train", 20), ("val", 4)):
            (folders[0] / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(100 * label, 100 * label + 100, (20, 20, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folders[0] / split / name / f"{i}.png")
    shutil.copytree(folders[0], folders[1])
    return folders


def test_processes_with_other_data_name_what_differs(images, tmp_path):
    """Without this, they would wait for each other for ever."""
    for file in ("train/dog/3.png", "val/cat/0.png"):
        (images[1] / file).unlink()
    flags = (
        *(f"--config={ROOT}/configs/folder.py", "--config.data.name=folder:images"),
        *("--config.model.name=efficientnetv2-tiny", "--config.batch_size=16"),
        *("--config.eval_batch_size=16", f"--workdir={tmp_path / 'run'}"),
    )
    started = time.monotonic()
    processes = [
        subprocess.Popen(
            [*command, *flags],
            cwd=folder.parent,
            env=environment(tmp_path) | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder, command in zip(
            images, local_pod.commands("effnetv2_jax.train", [], processes=2), strict=True
        )
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 2, stderr
        assert stderr.splitlines()[-1].startswith("error: processes disagree on the data: ")
        for split, there, here in (("train", 40, 39), ("val", 8, 7)):
            difference = f"(process 0: {there}, process 1: {here})"
            assert f"examples of split {split} of folder:images {difference}" in stderr
        assert "Traceback" not in stderr
    assert time.monotonic() - started < 60
    assert not (tmp_path / "run").exists()


def test_one_flag_of_three_is_refused(data_dir, tmp_path):
    command = [sys.executable, "-m", "effnetv2_jax.train", *CONFIG, f"--workdir={tmp_path}"]
    result = subprocess.run(
        [*command, "--process_id=1"],
        cwd=ROOT,
        env=environment(data_dir),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr == (
        "error: coordinator_address, num_processes and process_id belong together, num_processes "
        "and coordinator_address not given\n"
    )


def test_a_workdir_that_the_others_do_not_see_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    with pytest.raises(UsageError, match="must be a folder that all processes share: process 0"):
        workdir.claim(str(tmp_path / "run"), {})
    assert not (tmp_path / "run").exists()
