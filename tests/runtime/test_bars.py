"""Bars show nothing without a terminal, and pass everything on."""

import io
import sys

import pytest

from effnetv2_jax.runtime import bars


@pytest.fixture
def stderr(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_items_pass_through(stderr):
    assert list(bars.track(range(3), "reading", 3)) == [0, 1, 2]
    assert stderr.getvalue() == ""


def test_a_spinner_takes_words(stderr):
    with bars.spinner("compiling") as say:
        say("the update")
    assert stderr.getvalue() == ""


def test_a_counter_counts_steps(stderr):
    with bars.Counter() as counter:
        counter.start(2)
        counter.next("first")
        counter.say("half of it")
        counter.next("second")
    assert stderr.getvalue() == ""
