"""Faults other than kills: damaged files, full disks, lost or foreign files, bad numbers.

Each function causes a fault in the real program and asserts its outcome.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.faults import harness
from tests.faults.harness import Program

Scenario = Callable[[Program, pathlib.Path, pathlib.Path], None]


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda x: x.stat().st_size
    )


def truncate(folder: pathlib.Path) -> None:
    path = largest_file(folder)
    os.truncate(path, path.stat().st_size // 2)


def lose_a_file(folder: pathlib.Path) -> None:
    largest_file(folder).unlink()


def flip_a_bit(folder: pathlib.Path) -> None:
    path = largest_file(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty_checksums(folder: pathlib.Path) -> None:
    (folder / "checksums.json").write_bytes(b"")


DAMAGES = {
    "truncated": truncate,
    "a file is missing": lose_a_file,
    "a bit is flipped": flip_a_bit,
    "checksums are empty": empty_checksums,
}


def one_sentence(life: harness.Life) -> str:
    """Returns the error sentence of a program that ended with exit code 2."""
    assert life.exit_code == 2, life.stderr
    last = life.stderr.splitlines()[-1]
    assert last.startswith("error: "), life.stderr
    return last


def damaged(
    damage: Callable[[pathlib.Path], None],
    program: Program,
    reference: pathlib.Path,
    folder: pathlib.Path,
) -> None:
    """The checkpoint before is used, both are named, and the end is the same."""
    workdir = folder / "run"
    harness.copy_until(reference, workdir, 55)
    damage(workdir / "checkpoints" / "55")
    life = program.run(workdir)
    assert life.exit_code == 0, life.stderr
    (warning,) = [line for line in life.stderr.splitlines() if "is damaged" in line]
    assert "the checkpoint of step 55 is damaged" in warning
    assert "now damaged_checkpoints/55; the one of step 50 is used instead" in warning
    assert "resuming at step 50" in life.stderr
    assert (workdir / "damaged_checkpoints" / "55").is_dir()
    assert harness.differences(workdir, reference) == []


def half_written(program: Program, reference: pathlib.Path, folder: pathlib.Path) -> None:
    """A folder that never got its name is not taken for a checkpoint, and is removed."""
    workdir = folder / "run"
    harness.copy_until(reference, workdir, 55)
    checkpoints = workdir / "checkpoints"
    (checkpoints / "55").rename(checkpoints / "55.orbax-checkpoint-tmp")
    truncate(checkpoints / "55.orbax-checkpoint-tmp")
    life = program.run(workdir)
    assert life.exit_code == 0, life.stderr
    assert "resuming at step 50" in life.stderr
    assert harness.differences(workdir, reference) == []


def all_damaged(program: Program, reference: pathlib.Path, folder: pathlib.Path) -> None:
    """Nothing is guessed and nothing is touched."""
    workdir = folder / "run"
    harness.copy_until(reference, workdir, 10)
    for step in harness.steps(workdir):
        truncate(workdir / "checkpoints" / str(step))
    files = sorted((workdir / "checkpoints").rglob("*"))
    sentence = one_sentence(program.run(workdir))
    assert (
        f"all 2 checkpoints of workdir {str(workdir)!r} are damaged, the newest is 10" in sentence
    )
    assert sorted((workdir / "checkpoints").rglob("*")) == files
    assert not (workdir / "damaged_checkpoints").exists()


@contextlib.contextmanager
def small_disk(path: pathlib.Path) -> Iterator[None]:
    """A file system of 16 MB and 2,000 files, in memory; for root."""
    path.mkdir(parents=True)
    size = "size=16m,nr_inodes=2000"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def as_root(scenario: Scenario) -> Scenario:
    """Lets a scenario mount a disk; without root it runs in a namespace of its own."""

    @functools.wraps(scenario)
    def run(program: Program, reference: pathlib.Path, folder: pathlib.Path) -> None:
        if os.geteuid() == 0:
            scenario(program, reference, folder)
            return
        alone = ["unshare", "--map-root-user", "--mount"]
        try:
            subprocess.run([*alone, "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"needs root or unshare to mount a small disk: {error}")
        code = (
            "import pathlib, sys; from tests.faults import harness, scenarios; "
            "data, reference, folder = map(pathlib.Path, sys.argv[1:]); "
            f"scenarios.{scenario.__name__}(harness.Program(data), reference, folder)"
        )
        places = map(str, (program.folder, reference, folder))
        command = [*alone, sys.executable, "-c", code, *places]
        subprocess.run(command, cwd=harness.ROOT, check=True)

    return run


def end_at_a_page(path: pathlib.Path, room: int) -> None:
    """Makes a file of JSON lines end ``room`` bytes before the end of a page of the disk."""
    first, *others = path.read_text().splitlines()
    size = len("\n".join([first, *others, ""]))
    path.write_text("\n".join([first + " " * (-(size + room) % 4096), *others, ""]))


def fill(disk: pathlib.Path, files: bool = False) -> pathlib.Path:
    """Fills a disk, on request also its places for files and folders.

    Returns:
        The folder to delete to get space again.
    """
    filler = disk / "filler"
    filler.mkdir()
    with contextlib.suppress(OSError), (filler / "bytes").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))
    with contextlib.suppress(OSError):
        for i in itertools.count() if files else ():
            (filler / str(i)).touch()
    return filler


def fill_between_checkpoints(life: harness.Life, disk: pathlib.Path, files: bool) -> pathlib.Path:
    """Calls ``fill`` while the program is stopped and not in the middle of a checkpoint."""
    while True:
        life.stand_still()
        if not life.saving():
            break
        life.send(signal.SIGCONT)
        time.sleep(0.01)
    filler = fill(disk, files)
    life.send(signal.SIGCONT)
    return filler


@as_root
def full_for_a_while(program: Program, reference: pathlib.Path, folder: pathlib.Path) -> None:
    """Saves are lost, and nothing else: not even a line of the metrics."""
    disk = folder / "disk"
    with small_disk(disk):
        workdir = disk / "run"
        harness.copy_until(reference, workdir, 14)
        # There is room for two lines at most.
        end_at_a_page(workdir / "metrics.jsonl", 1000)
        # The disk is full from the start, and two stages are left when it has space again, so that
        # nothing here is a race.
        filler = fill(disk)
        with program.started(workdir) as life:
            for sign in ("checkpoint of step 15 could not be written", "metrics.jsonl cannot be"):
                assert life.wait_for(lambda sign=sign: sign in life.stderr), life.stderr
            shutil.rmtree(filler)
            life.process.wait(300)
        assert life.exit_code == 0, life.stderr
        assert "training goes on without it" in life.stderr
        assert "metrics.jsonl could be written again, nothing is missing" in life.stderr
        assert "TensorBoard's numbers go on" in life.stderr
        assert harness.differences(workdir, reference) == []


def _full_until_the_end(reference: pathlib.Path, folder: pathlib.Path, program, files) -> None:
    disk = folder / "disk"
    with small_disk(disk):
        workdir = disk / "run"
        harness.copy_until(reference, workdir, 14)
        # All checkpoints are kept, because deleting one would give space back.
        with program.started(workdir, "--config.checkpoint.keep_newest=100") as life:
            assert life.wait_for(lambda: max(harness.steps(workdir)) > 14), life.stderr
            filler = fill_between_checkpoints(life, disk, files)
            assert life.wait_for(lambda: "the last step could not be saved" in life.stderr)
            # Nothing is left to wait for.
            assert life.seconds_to_end() < harness.STOP_SECONDS
        saved = max(harness.steps(workdir))
        assert f"the checkpoint of step {harness.STEPS} could not be written" in life.stderr
        assert "training goes on without it" in life.stderr
        assert f"[{harness.STEPS}] eval/" in life.stderr
        assert one_sentence(life) == (
            f"error: the last step could not be saved; the same command goes on from step {saved}"
        )
        shutil.rmtree(filler)
        life = program.run(workdir)
        assert life.exit_code == 0, life.stderr
        assert f"resuming at step {saved}" in life.stderr
        assert harness.differences(workdir, reference) == []


@as_root
def full_until_the_end(program: Program, reference: pathlib.Path, folder: pathlib.Path) -> None:
    """The run goes on to its end and says what is missing; the same command completes it."""
    _full_until_the_end(reference, folder, program, files=False)


@as_root
def no_folder_until_the_end(
    program: Program, reference: pathlib.Path, folder: pathlib.Path
) -> None:
    """Like ``full_until_the_end`` on a disk on which not even an empty folder can be made."""
    _full_until_the_end(reference, folder, program, files=True)


@as_root
def full_from_the_start(program: Program, reference: pathlib.Path, folder: pathlib.Path) -> None:
    """A run that is resumed on a full disk goes on, cannot save its end, and says so."""
    disk = folder / "disk"
    with small_disk(disk):
        workdir = disk / "run"
        harness.copy_until(reference, workdir, 55)
        filler = fill(disk)
        life = program.run(workdir)
        assert one_sentence(life) == (
            "error: the last step could not be saved; the same command goes on from step 55"
        )
        assert "TensorBoard's numbers cannot be written" in life.stderr
        assert "[59] eval/" in life.stderr
        shutil.rmtree(filler)
        life = program.run(workdir)
        assert life.exit_code == 0, life.stderr
        assert "resuming at step 55" in life.stderr
        assert harness.differences(workdir, reference) == []


def lost_config(program: Program, reference: pathlib.Path, folder: pathlib.Path) -> None:
    """The config is restored from the checkpoint; a very impatient watch does no harm."""
    workdir = folder / "run"
    harness.copy_until(reference, workdir, 55)
    for name in ("config.json", "class_names.txt", "status.json", "parameters.txt"):
        (workdir / name).unlink()
    sentence = one_sentence(program.run(workdir, "--config.seed=1"))
    assert "seed (there 0, now 1)" in sentence
    assert not (workdir / "config.json").exists()
    life = program.run(workdir, "--config.stall_seconds=1")
    assert life.exit_code == 0, life.stderr
    assert "nothing has happened for 1 s while preparing stage 4; all threads:" in life.stderr
    assert "(most recent call first):" in life.stderr
    assert "the run goes on" in life.stderr
    assert harness.differences(workdir, reference) == []
    for name in ("class_names.txt", "parameters.txt"):
        assert (workdir / name).read_bytes() == (reference / name).read_bytes()
    assert (workdir / "config.json").exists()


def other_run(program: Program, reference: pathlib.Path, folder: pathlib.Path) -> None:
    """A workdir takes no other model or data set, and says which fields differ."""
    workdir = folder / "run"
    harness.copy_until(reference, workdir, 55)
    files = sorted(workdir.rglob("*"))
    life = program.run(
        workdir, "--config.model.name=efficientnetv2-b0", "--config.data.name=synthetic"
    )
    sentence = one_sentence(life)
    assert "data.name (there 'digits', now 'synthetic')" in sentence
    assert "model.name (there 'efficientnetv2-tiny', now 'efficientnetv2-b0')" in sentence
    assert "eval_image_size" not in sentence
    assert sorted(workdir.rglob("*")) == files


def numbers_go_wrong(
    program: Program, reference: pathlib.Path, folder: pathlib.Path, *, again: bool = False
) -> None:
    """The run ends with the state before and names the examples, also when it is started again."""
    del reference
    workdir = folder / "run"
    flags = (
        "--config.schedule.num_stages=1",
        "--config.optimizer.name=sgd",
        "--config.optimizer.learning_rate=1e30",
        "--config.optimizer.warmup_epochs=0.0",
        "--config.max_bad_steps=3",
    )
    sentence = one_sentence(program.run(workdir, *flags))
    rows = [json.loads(line) for line in (workdir / "bad_steps.jsonl").read_text().splitlines()]
    first, second, third = (row["step"] for row in rows)
    assert (second, third) == (first + 1, first + 2)
    assert f"steps {first} to {third} had a loss or a gradient that is not finite" in sentence
    assert f"goes on from step {first - 1}," in sentence
    for row in rows:
        numbers = [number for number, _ in row["examples"]]
        assert len(set(numbers)) == 96
        assert set(numbers) < set(range(1437))
    step, arrays = harness.arrays(workdir)
    assert step == first - 1
    assert all(np.isfinite(x).all() for x in arrays.values() if x.dtype.kind == "f")
    if again:
        assert one_sentence(program.run(workdir, *flags)) == sentence
    assert harness.steps(workdir) == [step]


# A batch that eight devices divide. Not AdamW, which turns rounding errors into whole steps if a
# gradient is zero, as it is for a bias before a batch norm.
ON_EIGHT = (
    "--config.eval_batch_size=120",
    "--config.optimizer.name=sgd",
    "--config.optimizer.learning_rate=0.05",
)


def eight_devices(program: Program, reference: pathlib.Path, folder: pathlib.Path) -> None:
    """A run on eight devices resumes with the same bits, and on one device up to rounding."""
    del reference
    eight = dataclasses.replace(program, devices=8, flags=(*program.flags, *ON_EIGHT))
    reference = folder / "reference"
    assert eight.run(reference, "--config.checkpoint.keep_newest=100").exit_code == 0
    kills = [
        harness.Kill(harness.KINDS[0], 17, 0.1),
        harness.Kill(harness.KINDS[1], 31, 0.05),
        harness.Kill(harness.KINDS[4], 47, 0.1),
    ]
    for outcome in harness.kill_in_a_row(eight, folder / "killed", kills, reference):
        assert outcome.wrong == [], outcome
    workdir = folder / "run"
    harness.copy_until(reference, workdir, 50)
    life = dataclasses.replace(eight, devices=1).run(workdir)
    assert life.exit_code == 0, life.stderr
    assert "resuming at step 50" in life.stderr
    assert harness.differences(workdir, reference, rtol=1e-4) == []


def two_processes(program: Program) -> Program:
    """Returns the program as a pod of two processes."""
    return dataclasses.replace(program, processes=2)


def ends_not_finite(program: Program, reference: pathlib.Path, folder: pathlib.Path) -> None:
    """A run whose numbers are worth nothing does not end as if all were well."""
    del reference
    workdir = folder / "run"
    flags = ("--config.optimizer.learning_rate=1e10", "--config.max_bad_steps=1000")
    for _ in range(2):  # also when there is nothing left to do
        sentence = one_sentence(program.run(workdir, *flags))
        assert f"numbers that are not finite (eval/loss of step {harness.STEPS}); " in sentence
        assert "there is no checkpoint with a finite evaluation, and a smaller" in sentence
    assert json.loads((workdir / "status.json").read_text())["state"] == "failed"
    assert (workdir / "report.md").exists()


def changed_data(program: Program, reference: pathlib.Path, folder: pathlib.Path) -> None:
    """Images that were deleted are a question to the user; one answer lets the run go on."""
    del reference
    moving = harness.Moving.make(program)
    workdir = folder / "run"
    assert harness.inflict(moving, workdir, harness.Kill(harness.KINDS[0], 20, 0.0)).wrong == []
    for number in range(8):
        (moving.images / "train" / str(number) / f"{number}.png").unlink()
    sentence = one_sentence(moving.run(workdir))
    assert "holds a run on other data: 1437 training examples then, 1429 now; restore" in sentence
    life = moving.run(workdir, "--accept_changed_data")
    assert life.exit_code == 0, life.stderr
    assert "going on with other data, as asked" in life.stderr
    # The free fields are free, in a place that is another.
    life = moving.for_next_life().run(workdir, "--config.eval_batch_size=30")
    assert life.exit_code == 0, life.stderr


def four_processes(program: Program, reference: pathlib.Path, folder: pathlib.Path) -> None:
    """A pod of four processes goes on unchanged after it was killed, and after it was stopped."""
    del reference
    pod = dataclasses.replace(program, processes=4, flags=(*program.flags, *ON_EIGHT))
    reference, workdir = folder / "reference", folder / "run"
    life = pod.run(reference)
    assert life.exit_code == 0, life.stdout + life.stderr
    killed = harness.Kill(harness.KINDS[0], 17, 0.1)
    outcome = harness.inflict(pod, workdir, killed)
    assert outcome and outcome.wrong == []
    with pod.started(workdir) as life:
        assert life.wait_for(lambda: life.step() >= 36)
        life.send(signal.SIGTERM)
        assert life.seconds_to_end() < harness.STOP_SECONDS
        assert life.exit_code == 0, life.stdout + life.stderr
        (line,) = [line for line in life.stdout.splitlines() if "resume with the same" in line]
        stopped_at = int(line.split("after step ")[1].split(",")[0])
    assert max(harness.steps(workdir)) == stopped_at
    life = pod.run(workdir)
    assert life.exit_code == 0, life.stdout + life.stderr
    assert harness.differences(workdir, reference) == []


SCENARIOS: dict[str, Scenario] = {
    **{
        f"Newest checkpoint: {name}": functools.partial(damaged, damage)
        for name, damage in DAMAGES.items()
    },
    "Newest checkpoint: half written": half_written,
    "All checkpoints damaged": all_damaged,
    "Disk full for a while": full_for_a_while,
    "Disk full until the end": full_until_the_end,
    "Disk full until the end, even for folders": no_folder_until_the_end,
    "Disk full from the start": full_from_the_start,
    "config.json lost; stalls": lost_config,
    "Workdir of another run": other_run,
    "Numbers go wrong": numbers_go_wrong,
    "Numbers go wrong again": functools.partial(numbers_go_wrong, again=True),
    "Eight devices, killed; then one": eight_devices,
    "Four processes, killed and stopped": four_processes,
    "The end is not finite": ends_not_finite,
    "Images deleted": changed_data,
}


def clean(folder: pathlib.Path) -> None:
    """Removes the files of all scenarios."""
    shutil.rmtree(folder, ignore_errors=True)
