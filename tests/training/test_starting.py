"""What is a stall between two stages, and when a process began."""

import pytest

from effnetv2_jax.training import starting
from effnetv2_jax.training.starting import Starting, seconds_since_start


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


def test_a_process_began_before_it_imported_this():
    imported = starting.time.monotonic() - starting._IMPORTED
    assert imported - 0.02 <= seconds_since_start() < imported + 3600
