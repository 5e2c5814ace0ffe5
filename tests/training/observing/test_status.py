"""``status.json`` is always whole and holds what is known of a run."""

import json
import math
import threading
import time

import pytest

from effnetv2_jax.progressive import Stage
from effnetv2_jax.training.observing import status as status_module
from effnetv2_jax.training.observing.status import Status, seconds_left


def stage(index, first_step, end_step, image_size, batch_size=10):
    return Stage(index, first_step, end_step, image_size, 5.0, 0.0, 0.0, 0.1, batch_size)


STAGES = (stage(0, 0, 10, 100), stage(1, 10, 30, 200), stage(2, 30, 40, 400, batch_size=5))


def read_status(workdir):
    return json.loads((workdir / "status.json").read_text())


def test_a_status_has_all_fields_from_the_start(tmp_path):
    status = Status(tmp_path, STAGES)
    assert not (tmp_path / "status.json").exists()
    before = time.time()
    status.update(state="starting")
    fields = read_status(tmp_path)
    assert before - 0.001 <= fields.pop("time") <= time.time()
    assert fields == {
        **{"state": "starting", "step": None, "total_steps": 40, "stage": None, "stages": 3},
        **{"image_size": None, "images_per_second": None, "loss": None, "last_checkpoint": None},
        **{"last_accuracy": None, "evaluations": None, "bad_steps": None, "seconds_left": None},
        **{"first_step_seconds": None, "stall_seconds": None},
    }
    status.trained(12, STAGES[1], 33.333, loss=1.5, bad_steps=2, last_checkpoint=10)
    status.evaluated("eval", 10, {"top1": 0.4, "count": 7}, scores=True)
    status.evaluated("eval", 12, {"top1": 0.5, "count": 7}, scores=True)
    status.evaluated("real", 12, {"top1": 0.25}, scores=False)
    fields = read_status(tmp_path)
    fields.pop("time")
    assert fields == {
        **{"state": "training", "step": 12, "total_steps": 40, "stage": 2, "stages": 3},
        **{"image_size": 200, "images_per_second": 33.3, "loss": 1.5, "last_checkpoint": 10},
        # 18 steps of 10 images, and 10 of 5 that are four times as large.
        "last_accuracy": 0.5,
        "evaluations": {
            "eval": {"step": 12, "top1": 0.5, "count": 7},
            "real": {"step": 12, "top1": 0.25},
        },
        **{"bad_steps": 2, "seconds_left": round(380 / 33.333)},
        **{"first_step_seconds": None, "stall_seconds": None},
    }


@pytest.mark.parametrize(
    ("step", "measured", "seconds"),
    [
        # In images of 100 px: 10 · 10, 20 · 10 · 4, 10 · 5 · 16.
        (0, 0, (100 + 800 + 800) / 50),
        (4, 0, (60 + 800 + 800) / 50),
        (10, 0, (800 + 800) / 50),
        # Those of 200 px cost 4 of them, so 50/s are 200/s.
        (10, 1, (800 + 800) / 200),
        (29, 1, (40 + 800) / 200),
        (35, 2, 25 / 50),
        (40, 2, 0.0),
    ],
)
def test_the_time_left_goes_by_the_area_of_the_images_to_come(step, measured, seconds):
    assert math.isclose(seconds_left(STAGES, step, STAGES[measured], 50.0), seconds)


def test_whoever_reads_a_status_sees_a_whole_one(tmp_path):
    status = Status(tmp_path, STAGES)
    status.update(state="starting")
    threads = [
        threading.Thread(target=lambda i=i: [status.update(loss=i * 1e100) for _ in range(15)])
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    reads = 0
    while any(thread.is_alive() for thread in threads):
        assert len(read_status(tmp_path)) == 16
        reads += 1
    assert reads > 10
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_full_disk_costs_the_status_only_and_is_said_once(tmp_path, monkeypatch, caplog):
    status = Status(tmp_path, STAGES)
    status.update(step=1)

    def full(path, text):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(status_module, "write_atomically", full)
        status.update(step=2)
        status.update(step=3)
        assert caplog.text.count("status.json cannot be written: No space left on device") == 1
        assert read_status(tmp_path)["step"] == 1
    status.update(loss=0.5)
    assert read_status(tmp_path)["step"] == 3
    with monkeypatch.context() as patch:
        patch.setattr(status_module, "write_atomically", full)
        status.update(step=4)
    assert caplog.text.count("cannot be written") == 2


def test_a_status_that_nobody_reads_is_not_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Status(None, STAGES).trained(5, STAGES[0], 100.0)
    assert list(tmp_path.iterdir()) == []


def test_a_status_is_json_that_others_can_read_too(tmp_path):
    """A loss that is not a number is no JSON number."""
    status = Status(tmp_path, STAGES)
    status.trained(5, STAGES[0], 100.0, loss=None)

    def refuse(name):
        raise ValueError(name)

    json.loads((tmp_path / "status.json").read_text(), parse_constant=refuse)
