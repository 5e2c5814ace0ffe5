"""The monitor tells starts, stalls and evaluations to people and in the status."""

import json
import logging
import re

import pytest

from effnetv2_jax.progressive import Stage
from effnetv2_jax.runtime.caches import Counts
from effnetv2_jax.training.observing import monitor as monitor_module
from effnetv2_jax.training.observing.history import JsonLinesWriter
from effnetv2_jax.training.observing.monitor import Monitor
from effnetv2_jax.training.observing.progress import Progress
from effnetv2_jax.training.observing.status import Status
from effnetv2_jax.training.survival.stalls import Watch

STAGE = Stage(0, 0, 10, 16, 5.0, 0.0, 0.0, 0.1, 4)


@pytest.fixture
def monitor(tmp_path, monkeypatch, caplog):
    """With counts of its own, as other tests compile too."""
    monkeypatch.setattr(monitor_module, "COUNTS", Counts())
    watch = Watch(1000, lambda: None)
    status = Status(tmp_path, (STAGE,))
    with caplog.at_level(logging.INFO, logger="absl"):
        yield Monitor(JsonLinesWriter(tmp_path), Progress(), status, watch)
    watch.stop()


@pytest.mark.parametrize(("hits", "misses", "end"), [(0, 0, " s"), (2, 0, " s, warm")])
def test_the_first_step_comes_with_its_seconds_and_whence_the_programs_came(
    monitor, tmp_path, caplog, hits, misses, end
):
    monitor_module.COUNTS.hits, monitor_module.COUNTS.misses = hits, misses
    monitor.first_step(None)
    (message,) = caplog.messages
    seconds = re.fullmatch(rf"first step after (\d+\.\d){end}", message)[1]
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["first_step_seconds"] == float(seconds) > 0
    assert status["stall_seconds"] is None


def test_a_border_comes_with_its_stall_in_seconds_and_steps(monitor, tmp_path, caplog):
    monitor.first_step((0.1234, 1.56))
    assert caplog.messages == ["first step after a stall of 0.12 s, 1.6 steps"]
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["stall_seconds"] == 0.123
    assert status["first_step_seconds"] is None


def test_an_evaluation_is_told_by_its_name_and_moment(monitor, tmp_path, caplog):
    results = {"top1": 0.5, "top5": 0.75, "loss": 1.25, "count": 4}
    monitor.evaluated("eval", 10, STAGE, results)
    monitor.evaluated("real", 7, STAGE, results | {"top1": 0.25}, scores=False)
    end = "top-5 75.00 %, loss 1.2500"
    assert caplog.messages == [
        f"end of stage 1: top-1 50.00 %, {end}",
        f"step 7, real: top-1 25.00 %, {end}",
    ]
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["last_accuracy"] == 0.5
    assert status["evaluations"] == {
        "eval": {"step": 10, **results},
        "real": {"step": 7, **results, "top1": 0.25},
    }
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row.get("real/top1"), row.get("eval/count")) for row in rows] == [
        (10, None, 4),
        (7, 0.25, None),
    ]
