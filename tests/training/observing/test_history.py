"""Metrics on a disk that fills up, after a kill, and rewound before a run is resumed."""

import errno
import json
import logging
import os

import pytest
from clu import asynclib

from effnetv2_jax.training.observing import history
from effnetv2_jax.training.observing.history import (
    ForgivingWriter,
    JsonLines,
    JsonLinesWriter,
    rewind,
)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def disk(monkeypatch):
    """A disk with room for a number of bytes; None for no limit."""

    class Disk:
        room = None

    real_write = os.write

    def write(file, data):
        if Disk.room is None:
            return real_write(file, data)
        if not Disk.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # As the system does: first what there is room for, then the error.
        written = real_write(file, data[: Disk.room])
        Disk.room -= written
        return written

    monkeypatch.setattr(history.os, "write", write)
    return Disk


def test_every_row_is_a_line_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    for step in range(3):
        lines.append({"step": step, "x": 0.1 * step})
        assert rows(path) == [{"step": i, "x": 0.1 * i} for i in range(step + 1)]
    JsonLines(path).append({"step": 3})
    assert [row["step"] for row in rows(path)] == [0, 1, 2, 3]


@pytest.mark.parametrize("room", [0, 5, 25])
def test_a_full_disk_leaves_no_half_line_and_nothing_is_missing_later(tmp_path, disk, room, caplog):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    with caplog.at_level(logging.INFO, logger="absl"):
        lines.append({"step": 0})
        disk.room = room
        for step in range(1, 5):
            lines.append({"step": step, "x": "much"})
            # Whole lines only, of those that there was room for.
            assert path.read_text().endswith("\n")
            assert [row["step"] for row in rows(path)] == list(range(len(rows(path))))
        assert len(rows(path)) < 5
        # Said once, not for every row.
        assert caplog.text.count("cannot be written (No space left on device), for now") == 1
        disk.room = None
        lines.append({"step": 5})
        assert [row["step"] for row in rows(path)] == [0, 1, 2, 3, 4, 5]
        assert caplog.text.count("could be written again, nothing is missing") == 1
        lines.append({"step": 6})
    assert caplog.text.count("written again") == 1
    assert len(rows(path)) == 7


def test_a_file_that_cannot_be_opened_is_tried_again(tmp_path):
    path = tmp_path / "folder" / "metrics.jsonl"
    lines = JsonLines(path)
    lines.append({"step": 1})
    path.parent.mkdir()
    lines.append({"step": 2})
    assert [row["step"] for row in rows(path)] == [1, 2]


def test_a_flush_writes_what_is_left(tmp_path, disk):
    """Before a checkpoint, which must not be ahead of the lines that lead to it."""
    writer = JsonLinesWriter(tmp_path)
    disk.room = 3
    writer.write_scalars(1, {"loss": 0.5})
    disk.room = None
    writer.flush()
    (row,) = rows(tmp_path / "metrics.jsonl")
    assert (row["step"], row["loss"]) == (1, 0.5)


class Tensorboard:
    """A writer that can be made and written to while there is space."""

    def __init__(self, disk):
        self.steps = []
        self._disk = disk
        self._late = None
        self._needs_space()

    def _needs_space(self):
        if self._disk.room == 0:
            # As TensorFlow's errors are, no OSError.
            raise Exception("No space left on device\n\tCould not flush")

    def write_scalars(self, step, scalars):
        if self._late:
            # clu's writer works in a thread, and raises what went wrong in a call before.
            raise asynclib.AsyncError("Something failed") from self._late
        try:
            self._needs_space()
            self.steps.append(step)
        except Exception as error:
            self._late = error

    def flush(self):
        self._needs_space()

    close = flush


def test_tensorboard_on_a_full_disk_ends_nothing_and_goes_on_in_another_file(disk, caplog):
    """With and without space when the run starts."""
    for room in (None, 0):
        caplog.clear()
        made = []

        def make(made=made):
            made.append(Tensorboard(disk))
            return made[-1]

        disk.room = room
        with caplog.at_level(logging.INFO, logger="absl"):
            writer = ForgivingWriter(make)
            writer.write_scalars(1, {"loss": 1.0})
            disk.room = 0
            for step in (2, 3, 4):
                writer.write_scalars(step, {"loss": 1.0})
                writer.flush()
            # Said once, without what comes after the first line.
            assert caplog.text.count("cannot be written (No space left on device), for now") == 1
            assert "go on" not in caplog.text
            disk.room = None
            writer.flush()
            assert caplog.text.count("TensorBoard's numbers go on") == 1
            writer.write_scalars(5, {"loss": 1.0})
            assert [x.steps for x in made] == ([[1], [5]] if room is None else [[5]])
            disk.room = 0
            writer.close()
        assert caplog.text.count("cannot be written") == 2


def test_tensorboard_has_the_numbers_and_so_has_the_log(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        writer = history.make_writer(tmp_path)
        writer.write_scalars(7, {"loss": 0.5})
        writer.close()
    assert "[7] loss=0.5" in caplog.text
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"loss" in events.read_bytes()
    assert [row["loss"] for row in rows(tmp_path / "metrics.jsonl")] == [0.5]


def test_rewinding_takes_back_later_steps_and_half_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in range(1, 8)]
    path.write_text("\n".join([*lines[:5], "\0\0\0", *lines[5:]]) + '\n{"step": 8, "lo')
    rewind(tmp_path, 5)
    assert path.read_text() == "\n".join(lines[:5]) + "\n"
    JsonLines(path).append({"step": 6})
    assert [row["step"] for row in rows(path)] == [1, 2, 3, 4, 5, 6]


def test_a_whole_line_without_its_end_is_kept_and_ended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    rewind(tmp_path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_rewinding_what_is_not_there_makes_nothing(tmp_path):
    rewind(tmp_path, 5)
    assert list(tmp_path.iterdir()) == []
