"""Checkpoints on a real disk: what they hold, which stay, and what becomes of damaged ones."""

import errno
import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training import mesh as placement
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.survival.checkpoint import (
    Checkpoints,
    Keep,
    find_damage,
    read_record,
)

MESH = placement.make_mesh(jax.devices()[:1])
# One that is written as an array of its own, and a few that are written as one.
LARGE = 1 << 15
ODD_NUMBERS = np.array([-0.0, 1e-45, np.inf, -np.inf, np.nan, 1 / 3], np.float32)


def state_at(step, mesh=MESH):
    """A state in which every number says which step it is of."""

    def weights(offset):
        return {
            "kernel": np.arange(LARGE, dtype=np.float32).reshape(256, -1) + offset + step,
            "bias": np.float32(offset + step) * ODD_NUMBERS,
        }

    state = TrainState(
        step=np.int32(step),
        params=weights(0.25),
        batch_stats={"mean": np.full(3, step, np.float32)},
        opt_state=({"count": np.int32(step)}, {"mu": weights(0.5)}),
        ema_params=weights(0.75),
        ema_batch_stats={"mean": np.full(3, -step, np.float32)},
    )
    return placement.shard_state(state, mesh)


SHAPES = jax.eval_shape(lambda: state_at(0))


def record_of(step):
    return {"step": step, "config": {"seed": 0}, "interval": [{"loss": 1 / 3, "finite": 1.0}]}


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(state_at(step), record_of(step))
    checkpoints.finish()


@pytest.fixture
def workdir(tmp_path):
    """With checkpoints of steps 5 and 10."""
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 5, 10)
    checkpoints.close()
    return tmp_path


def folder(workdir, step):
    return workdir / "checkpoints" / str(step)


def files_in(place):
    return sorted(path for path in place.rglob("*") if path.is_file())


def contents(place):
    return {path.relative_to(place): path.read_bytes() for path in files_in(place)}


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_same_bits(state, expected):
    def check(a, b):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())

    jax.tree.map(check, state, expected)


def assert_resumes_at(workdir, step):
    checkpoints = Checkpoints(workdir)
    assert checkpoints.latest_step() == step
    assert_same_bits(checkpoints.restore(SHAPES, MESH), state_at(step))
    record = checkpoints.record()
    assert {name: record[name] for name in record_of(step)} == record_of(step)
    checkpoints.close()


def test_what_is_read_is_what_was_written_to_the_last_bit(workdir):
    assert_resumes_at(workdir, 10)
    assert read_record(workdir)["step"] == 10


def test_without_a_checkpoint_there_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() is None
    assert checkpoints.steps() == []
    assert read_record(tmp_path) is None
    checkpoints.close()


@pytest.mark.parametrize("devices", [1, 8])
def test_the_state_may_change_as_soon_as_save_returns(tmp_path, devices):
    """The next step is given the same memory, while the checkpoint is being written."""
    mesh = placement.make_mesh(jax.devices()[:devices], fsdp=min(devices, 2))
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, keep=Keep(newest=9))
    for step in range(1, 5):
        state = state_at(step, mesh)
        checkpoints.save(state, record_of(step))
        jax.block_until_ready(overwrite(state))
    checkpoints.close()
    for step in range(4, 0, -1):
        assert_resumes_at(tmp_path, step)
        shutil.rmtree(folder(tmp_path, step))


def test_the_record_may_change_as_soon_as_save_returns(tmp_path):
    """The next step's sums are appended to the rows, while the checkpoint is being written."""
    record = record_of(1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_at(1), record)
    record["interval"].append({"loss": 0.5, "finite": 1.0})
    record["config"]["seed"] = 1
    checkpoints.close()
    assert_resumes_at(tmp_path, 1)


@pytest.mark.parametrize(
    ("written", "read"), [((8, 2), (1, 1)), ((1, 1), (8, 4)), ((8, 2), (4, 4))]
)
def test_a_split_state_is_read_onto_other_devices(tmp_path, written, read):
    meshes = [placement.make_mesh(jax.devices()[:n], fsdp=fsdp) for n, fsdp in (written, read)]
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_at(3, meshes[0]), record_of(3))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    state = checkpoints.restore(SHAPES, meshes[1])
    checkpoints.close()
    assert_same_bits(state, state_at(3))
    for x, sharding in zip(
        jax.tree.leaves(state),
        jax.tree.leaves(placement.state_shardings(SHAPES, meshes[1])),
        strict=True,
    ):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)


def test_closing_waits_for_what_is_being_written(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_at(1), record_of(1))
    checkpoints.close()
    assert find_damage(folder(tmp_path, 1)) is None


def test_a_step_that_is_saved_is_not_saved_again(workdir):
    before = contents(folder(workdir, 10))
    times = [path.stat().st_mtime_ns for path in files_in(folder(workdir, 10))]
    checkpoints = Checkpoints(workdir)
    save(checkpoints, 10)
    checkpoints.close()
    assert contents(folder(workdir, 10)) == before
    assert [path.stat().st_mtime_ns for path in files_in(folder(workdir, 10))] == times


KEEPS = {
    "newest": (Keep(newest=2, best=0), {}, [35, 40]),
    "every 15": (Keep(newest=1, every_steps=15, best=0), {}, [15, 30, 40]),
    "best": (Keep(newest=1, best=2), {10: 0.3, 20: 0.5, 30: 0.4, 40: 0.1}, [20, 30, 40]),
    # It has seen more.
    "later of equal ones": (Keep(newest=1, best=1), {10: 0.5, 20: 0.5}, [20, 40]),
    "all together": (Keep(newest=2, every_steps=20, best=1), {10: 0.9}, [10, 20, 35, 40]),
    "no scores": (Keep(newest=1, best=3), {}, [40]),
}


@pytest.mark.parametrize("name", KEEPS)
def test_those_stay_that_somebody_wants(tmp_path, name):
    keep, scores, expected = KEEPS[name]
    checkpoints = Checkpoints(tmp_path, keep=keep)
    for step in range(5, 45, 5):
        save(checkpoints, step)
        # Known only when the checkpoint is there.
        if step in scores:
            checkpoints.scores[step] = scores[step]
    checkpoints.close()
    assert checkpoints.steps() == expected


def test_a_resumed_run_keeps_what_the_first_would_have(tmp_path):
    scores = {}
    for steps in ([5, 10, 15], [20, 25], [30]):
        checkpoints = Checkpoints(tmp_path, keep=Keep(newest=2), scores=scores)
        save(checkpoints, *steps)
        scores[10] = 0.5
        checkpoints.close()
    assert checkpoints.steps() == [10, 25, 30]


def test_checksums_are_in_a_checkpoint_before_it_has_its_name(tmp_path):
    seen = []

    class Slow(Checkpoints):
        def _write_checksums(self):
            (unnamed,) = (tmp_path / "checkpoints").iterdir()
            seen.append((self.steps(), unnamed.name, "checksums.json" in os.listdir(unnamed)))
            super()._write_checksums()
            seen.append((self.steps(), unnamed.name, "checksums.json" in os.listdir(unnamed)))

    checkpoints = Slow(tmp_path)
    save(checkpoints, 5)
    checkpoints.close()
    (no_steps, name, there), (still_no_steps, _, there_then) = seen
    assert no_steps == still_no_steps == []
    assert not name.isdecimal()
    assert (there, there_then) == (False, True)
    assert checkpoints.steps() == [5]
    assert find_damage(folder(tmp_path, 5)) is None


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, pathlib.Path.unlink])
def test_damage_to_any_file_is_noticed_or_does_no_harm(workdir, damage):
    place = folder(workdir, 10)
    names = [path.relative_to(place).as_posix() for path in files_in(place)]
    harmless = []
    assert any(path.stat().st_size > 4 * LARGE for path in files_in(place))
    for name in names:
        before = (place / name).read_bytes()
        damage(place / name)
        if found := find_damage(place):
            assert name in found or name == "checksums.json"
        else:
            harmless.append(name)
            assert_resumes_at(workdir, 10)
        (place / name).write_bytes(before)
        assert find_damage(place) is None
    # Orbax writes these when the checkpoint has its name.
    assert set(harmless) <= {"_CHECKPOINT_METADATA", "commit_success.txt"}


SAYS = {
    "truncated": (truncate, r"\S+ has \d+ of \d+ bytes"),
    "flipped": (flip, r"\S+ has other contents than were written"),
    "missing": (pathlib.Path.unlink, r"\S+ is missing"),
}


@pytest.mark.parametrize("name", SAYS)
def test_of_a_damaged_checkpoint_the_one_before_is_used(workdir, name, caplog):
    damage, says = SAYS[name]
    damage(max(files_in(folder(workdir, 10)), key=lambda path: path.stat().st_size))
    damaged = contents(folder(workdir, 10))
    assert_resumes_at(workdir, 5)
    (record,) = [record for record in caplog.records if "damaged" in record.message]
    assert record.levelno == logging.WARNING
    pattern = (
        rf"the checkpoint of step 10 is damaged \({says}\), now damaged_checkpoints/10; "
        r"the one of step 5 is used instead"
    )
    assert re.fullmatch(pattern, record.message)
    assert contents(workdir / "damaged_checkpoints" / "10") == damaged
    assert not folder(workdir, 10).exists()


def test_the_damaged_step_is_made_again_and_may_be_damaged_again(workdir, caplog):
    for number in ("10", "10_2", "10_3"):
        (folder(workdir, 10) / "checksums.json").write_bytes(b"")
        checkpoints = Checkpoints(workdir)
        assert checkpoints.latest_step() == 5
        assert f"now damaged_checkpoints/{number};" in caplog.text
        assert "checksums.json cannot be read" in caplog.text
        save(checkpoints, 10)
        checkpoints.close()
        assert_resumes_at(workdir, 10)
    assert len(os.listdir(workdir / "damaged_checkpoints")) == 3


def test_several_damaged_ones_are_named_each(workdir, caplog):
    checkpoints = Checkpoints(workdir, keep=Keep(newest=9))
    save(checkpoints, 15, 20)
    checkpoints.close()
    for step in (10, 20):
        truncate(folder(workdir, step) / "state" / "_METADATA")
    # The one of step 15 is good, so that of step 10 does not matter.
    assert_resumes_at(workdir, 15)
    assert "step 20 is damaged" in caplog.text
    assert "step 10 is damaged" not in caplog.text
    truncate(folder(workdir, 15) / "state" / "_METADATA")
    assert_resumes_at(workdir, 5)
    for step in (10, 15):
        assert f"step {step} is damaged" in caplog.text
    assert sorted(os.listdir(workdir / "damaged_checkpoints")) == ["10", "15", "20"]


def test_where_all_are_damaged_nothing_is_touched_and_nothing_guessed(workdir):
    for step in (5, 10):
        truncate(folder(workdir, step) / "state" / "_METADATA")
    before = contents(workdir)
    with pytest.raises(UsageError) as error:
        Checkpoints(workdir)
    assert "all 2 checkpoints of workdir" in str(error.value)
    assert "the newest is 10 (state/_METADATA has" in str(error.value)
    assert "\n" not in str(error.value)
    assert contents(workdir) == before
    assert read_record(workdir) is None


def test_who_only_reads_changes_nothing(workdir, caplog):
    flip(folder(workdir, 10) / "state" / "_METADATA")
    (workdir / "checkpoints" / "15.orbax-checkpoint-tmp").mkdir()
    (workdir / "checkpoints" / "15.orbax-checkpoint-tmp" / "half").write_text("written")
    before = contents(workdir)
    checkpoints = Checkpoints(workdir, read_only=True)
    assert checkpoints.latest_step() == 5
    assert_same_bits(checkpoints.restore(SHAPES, MESH), state_at(5))
    checkpoints.close()
    assert contents(workdir) == before
    assert "step 10 is damaged (state/_METADATA has other contents than were written); the one" in (
        caplog.text
    )
    assert read_record(workdir)["step"] == 5


def test_reading_makes_no_folder_where_there_is_no_run(tmp_path):
    checkpoints = Checkpoints(tmp_path, read_only=True)
    assert checkpoints.latest_step() is None
    checkpoints.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_half_written_is_no_checkpoint_and_does_not_stay(workdir, caplog):
    half = workdir / "checkpoints" / "15.orbax-checkpoint-tmp"
    shutil.copytree(folder(workdir, 10), half)
    (half / "checksums.json").unlink()
    checkpoints = Checkpoints(workdir)
    assert checkpoints.latest_step() == 10
    assert checkpoints.steps() == [5, 10]
    # In the background.
    wait_until(lambda: not half.exists())
    save(checkpoints, 15)
    checkpoints.close()
    assert_resumes_at(workdir, 15)
    assert "damaged" not in caplog.text


def fail(*arguments, **keywords):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Full(Checkpoints):
    """A disk that is full as soon as almost all is written."""

    full = False

    def _write_checksums(self):
        super()._write_checksums()
        if self.full:
            fail()


def test_a_save_that_fails_in_the_background_is_logged_and_leaves_nothing(tmp_path, caplog):
    checkpoints = Full(tmp_path)
    save(checkpoints, 5)
    checkpoints.full = True
    checkpoints.save(state_at(10), record_of(10))
    checkpoints.save(state_at(15), record_of(15))
    assert caplog.text.count("the checkpoint of step 10 could not be written") == 1
    assert "No space left on device" in caplog.text
    checkpoints.finish()
    assert "the checkpoint of step 15 could not be written" in caplog.text
    assert "training goes on without it" in caplog.text
    wait_until(lambda: os.listdir(tmp_path / "checkpoints") == ["5"])
    checkpoints.full = False
    # Also a step that could not be written before.
    save(checkpoints, 15, 20)
    checkpoints.close()
    assert checkpoints.steps() == [5, 15, 20]
    assert caplog.text.count("could not be written") == 2
    assert_resumes_at(tmp_path, 20)


def test_a_save_that_fails_at_once_is_logged_too(workdir, monkeypatch, caplog):
    checkpoints = Checkpoints(workdir)
    monkeypatch.setattr(checkpoints._manager, "save", fail)
    checkpoints.save(state_at(15), record_of(15))
    assert "the checkpoint of step 15 could not be written ([Errno 28] No space" in caplog.text
    # The manager is another now.
    save(checkpoints, 20)
    checkpoints.close()
    assert checkpoints.steps() == [5, 10, 20]
    assert_resumes_at(workdir, 20)


def test_a_save_that_fails_does_not_make_old_ones_go(tmp_path):
    """Orbax forgets those that it wants to delete before it has saved."""
    checkpoints = Full(tmp_path, keep=Keep(newest=2, best=0))
    save(checkpoints, 5, 10)
    checkpoints.full = True
    save(checkpoints, 15, 20, 25)
    assert checkpoints.steps() == [5, 10]
    checkpoints.full = False
    save(checkpoints, 30)
    checkpoints.close()
    assert checkpoints.steps() == [10, 30]


# A disk that goes away and comes back, as one of a network does.
GONE = """
import os, pathlib, sys, time
sys.path.append(sys.argv[1])
from tests.training.survival.test_checkpoint import *
workdir = pathlib.Path(sys.argv[2])
checkpoints = Checkpoints(workdir, keep=Keep(newest=9))
(workdir / "checkpoints").rename(workdir / "gone")
(workdir / "checkpoints").write_text("a file")
save(checkpoints, 15)
time.sleep(1)  # whatever else is tried in the background
(workdir / "checkpoints").unlink()
(workdir / "gone").rename(workdir / "checkpoints")
save(checkpoints, 20, 25)
checkpoints.close()
assert_resumes_at(workdir, 25)
print(checkpoints.steps(), flush=True)
# Threads of Orbax would keep it alive for minutes.
os._exit(0)
"""


@pytest.fixture(scope="module")
def saved_around_an_outage(tmp_path_factory):
    """Steps on a disk that was there for steps 5, 10, 20 and 25, and not for 15."""
    workdir = tmp_path_factory.mktemp("outage")
    checkpoints = Checkpoints(workdir)
    save(checkpoints, 5, 10)
    checkpoints.close()
    here = str(pathlib.Path(__file__).parents[3])
    command = [sys.executable, "-c", GONE, here, str(workdir)]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60)
    return json.loads(result.stdout)


def test_a_disk_that_goes_away_costs_saves_and_not_the_run(saved_around_an_outage):
    assert 15 not in saved_around_an_outage
    assert {5, 10, 25} <= set(saved_around_an_outage)


def test_the_first_save_on_a_disk_that_has_come_back_works(saved_around_an_outage):
    assert 20 in saved_around_an_outage


def test_a_checkpoint_is_chosen_by_name_or_step(workdir):
    checkpoints = Checkpoints(workdir, scores={5: 0.9, 10: 0.8}, read_only=True)
    names = {"newest": 10, "best": 5, "5": 5, "10": 10}
    assert {name: checkpoints.choose(name) for name in names} == names
    state = checkpoints.restore(SHAPES, MESH, checkpoints.choose("best"))
    assert_same_bits(state, state_at(5))
    with pytest.raises(UsageError, match=r"must be one of 5, 10, newest, best, got '7'"):
        checkpoints.choose("7")
    flip(folder(workdir, 5) / "state" / "_METADATA")
    with pytest.raises(UsageError, match="the checkpoint of step 5 is damaged"):
        checkpoints.choose("best")
    checkpoints.close()


def test_a_record_that_jax_numbers_are_not_in_is_what_it_was(tmp_path):
    """Sums of a line of the log: float32 as Python's floats, not finite ones among them."""
    sums = [{"loss": float(x), "finite": 1.0} for x in ODD_NUMBERS]
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_at(1), {"interval": sums})
    checkpoints.close()
    read = [row["loss"] for row in read_record(tmp_path)["interval"]]
    assert np.array(read, np.float32).tobytes() == ODD_NUMBERS.tobytes()
    json.dumps(read_record(tmp_path))
