"""Bars are shown on a terminal only, and pass everything on."""

import io
import sys

import pytest

from effnetv2_jax.runtime import bars


class Terminal(io.StringIO):
    """A standard error that says that it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture(params=[io.StringIO, Terminal], ids=["pipe", "terminal"])
def replace_stderr(request, monkeypatch):
    """Returns a function for the test to call: pytest puts its own stderr back after a fixture."""

    def replace():
        stream = request.param()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        return stream

    return replace


def assert_shown_on_a_terminal_only(stream, text):
    written = stream.getvalue()
    assert text in written if stream.isatty() else written == ""


def test_items_pass_through(replace_stderr):
    stream = replace_stderr()
    assert list(bars.track(range(3), "reading", 3)) == [0, 1, 2]
    assert_shown_on_a_terminal_only(stream, "reading")


def test_a_spinner_shows_its_words(replace_stderr):
    stream = replace_stderr()
    with bars.spinner("compiling") as say:
        say("the update")
    assert_shown_on_a_terminal_only(stream, "compiling")


def test_a_counter_shows_its_steps(replace_stderr):
    stream = replace_stderr()
    with bars.Counter() as counter:
        counter.start(2)
        counter.next("first")
        counter.say("half of it")
        counter.next("second")
    assert_shown_on_a_terminal_only(stream, "1/2")
