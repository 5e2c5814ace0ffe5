"""Checkpoints in folders with any name can be read again, and what cannot be read is noticed."""

import contextlib
import dataclasses
import os

import jax
import numpy as np
import pytest

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training.survival import checkpoint
from effnetv2_jax.training.survival.checkpoint import Checkpoints, find_damage, read_parts
from tests.odd_names import NAMES
from tests.training.survival.test_checkpoint import (
    assert_resumes_at,
    assert_same_bits,
    folder,
    record_of,
    save,
    state_at,
)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_workdir_may_have_any_name(tmp_path, name):
    workdir = tmp_path / name
    checkpoints = Checkpoints(workdir)
    save(checkpoints, 5)
    checkpoints.close()
    assert find_damage(folder(workdir, 5)) is None
    assert_resumes_at(workdir, 5)
    parts = read_parts(workdir, 5, ["ema_params"])
    assert_same_bits(parts["ema_params/kernel"], state_at(5).ema_params["kernel"])
    assert sorted(os.listdir(workdir)) == ["checkpoints"]
    assert os.listdir(workdir / "checkpoints") == ["5"]


def test_arrays_of_zeros_and_empty_parts_are_there_too(tmp_path):
    state = jax.tree.map(lambda x: x * 0, state_at(5))
    state = dataclasses.replace(state, step=np.int32(5), batch_stats={}, opt_state=())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, record_of(5))
    checkpoints.close()
    assert find_damage(folder(tmp_path, 5)) is None


@pytest.fixture
def straight(monkeypatch):
    """Orbax is given the path as it is, and finds nothing to merge in brackets."""
    monkeypatch.setattr(checkpoint, "plain_path", contextlib.nullcontext)


def test_a_checkpoint_that_cannot_be_read_back_never_gets_its_name(tmp_path, straight, caplog):
    checkpoints = Checkpoints(tmp_path / "lr=[0.1]")
    save(checkpoints, 5)
    checkpoints.close()
    assert "the checkpoint of step 5 could not be written (its array large." in caplog.text
    assert checkpoints.steps() == []


def test_checksums_do_not_bless_a_store_that_lacks_its_arrays(tmp_path, straight, monkeypatch):
    """As in workdirs that were written before."""
    workdir = tmp_path / "lr=[0.1]"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_open_arrays", lambda folder: [])
        checkpoints = Checkpoints(workdir)
        save(checkpoints, 5)
        checkpoints.close()
    monkeypatch.undo()
    damage = "its array large.ema_params.kernel cannot be read"
    assert find_damage(folder(workdir, 5)) == damage
    with pytest.raises(UsageError, match=rf"the newest is 5 \({damage}\)"):
        Checkpoints(workdir)


def test_numbers_that_cannot_be_read_back_are_noticed(tmp_path, monkeypatch, caplog):
    """A file that is shorter than its index says: its checksum alone would be right."""
    opened = checkpoint._open_arrays

    def cut_short(step):
        arrays = opened(step)
        largest = max((step / "state").rglob("*"), key=lambda path: path.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)
        return arrays

    monkeypatch.setattr(checkpoint, "_open_arrays", cut_short)
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 5)
    checkpoints.close()
    assert "the checkpoint of step 5 could not be written" in caplog.text
    assert checkpoints.steps() == []


def test_a_link_that_somebody_removed_is_made_again(tmp_path):
    """Systems delete old files from the folder of temporary files."""
    workdir = tmp_path / "lr=[0.1]"
    checkpoints = Checkpoints(workdir)
    save(checkpoints, 5)
    checkpoints._plain.unlink()
    save(checkpoints, 10)
    checkpoints.close()
    assert checkpoints.steps() == [5, 10]
    assert_resumes_at(workdir, 10)


def test_what_is_written_elsewhere_is_no_checkpoint(tmp_path, caplog):
    """If the link goes while Orbax writes, it makes a folder in its place."""
    checkpoints = Checkpoints(tmp_path / "lr=[0.1]")
    checkpoints._plain.unlink()
    checkpoints._plain.mkdir()
    save(checkpoints, 5, 10)
    checkpoints.close()
    assert caplog.text.count("could not be written") == 1
    assert checkpoints.steps() == [10]
    assert_resumes_at(tmp_path / "lr=[0.1]", 10)
