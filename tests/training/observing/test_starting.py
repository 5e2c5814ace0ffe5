"""The stall between two stages, and the age of the process."""

import subprocess
import sys
import time

import pytest

from effnetv2_jax.training.observing import starting
from effnetv2_jax.training.observing.starting import Starting


def test_a_stall_is_without_checkpoint_and_evaluation(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(starting.time, "perf_counter", lambda: now[0])
    watched = Starting()
    assert watched.first_step(4) is None
    now[0] += 8  # four steps of 2 s
    watched.last_step()
    with watched.work():
        now[0] += 50
    now[0] += 3
    assert watched.first_step(4) == pytest.approx((3.0, 1.5))
    # Nothing of one border counts at the next.
    now[0] += 8
    watched.last_step()
    now[0] += 1
    assert watched.first_step(4) == pytest.approx((1.0, 0.5))


def test_a_process_knows_when_it_began():
    code = "import runpy, sys, time; time.sleep(0.5); module = runpy.run_path(sys.argv[1]);"
    code += "print(module['seconds_since_start']())"
    began = time.perf_counter()
    command = [sys.executable, "-c", code, starting.__file__]
    seconds = float(subprocess.run(command, check=True, capture_output=True).stdout)
    assert 0.48 <= seconds <= time.perf_counter() - began + 0.02
