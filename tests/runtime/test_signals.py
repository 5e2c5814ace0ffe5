"""Signals, as processes get them whose main thread is busy: what ends, how, and how soon."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from effnetv2_jax.runtime import signals as stopping

# The module by its file: the package would take seconds to import.
PROLOGUE = f"""
import ctypes, hashlib, importlib.util, os, signal, sys, threading, time
spec = importlib.util.spec_from_file_location("stopping", {stopping.__file__!r})
stopping = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stopping)
def block():  # in C, where Python's own handlers do not run
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000_000)
def until(stop):
    print("ready", flush=True)
    while not stop():
        time.sleep(0.01)
"""
BLOCKED = """
with stopping.listening() as stop:
    stop.worth_saving()
    block()
"""
BEFORE_THE_FIRST_STEP = """
with stopping.listening() as stop:
    block()
"""
SAVES = """
with stopping.listening() as stop:
    stop.worth_saving()
    until(stop)
print("saved")
stopping.leave(stop.exit_code)
"""


@contextlib.contextmanager
def running(program, **keywords):
    """A process that has said that it is ready; nothing of it is left behind."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + program],
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        **({"stderr": subprocess.PIPE} | keywords),
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


def ended(process, seconds=5):
    """(exit code, stdout, stderr) of a process that ends soon."""
    stdout, stderr = process.communicate(timeout=seconds)
    return process.returncode, stdout, stderr


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_the_first_signal_lets_the_run_save(number, exit_code):
    with running(SAVES) as process:
        process.send_signal(number)
        name = signal.Signals(number).name
        assert ended(process) == (
            exit_code,
            "saved\n",
            f"{name}: saving and stopping; another one ends the run at once\n",
        )


@pytest.mark.parametrize(
    "numbers", [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGINT"), ("SIGTERM", "SIGINT")]
)
def test_the_second_signal_ends_it_at_once_even_in_a_long_call(numbers):
    first, second = (signal.Signals[name] for name in numbers)
    with running(BLOCKED) as process:
        process.send_signal(first)
        assert process.stderr.readline().startswith(f"{first.name}: saving and stopping")
        assert process.poll() is None
        sent = time.monotonic()
        process.send_signal(second)
        assert ended(process)[0] == 128 + second
        assert time.monotonic() - sent < 2


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_where_there_is_nothing_to_save_the_first_signal_ends_it(number, exit_code):
    with running(BEFORE_THE_FIRST_STEP) as process:
        process.send_signal(number)
        name = signal.Signals(number).name
        sentence = f"{name}: nothing new to save; resume with the same command\n"
        assert ended(process) == (exit_code, "", sentence)


def test_what_was_printed_comes_out_however_a_process_leaves():
    program = """
with stopping.listening() as stop:
    print("ready", flush=True)
    sys.stdout.write("the last words")
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000_000)
"""
    with running(program) as process:
        time.sleep(0.3)  # until they are written
        process.send_signal(signal.SIGTERM)
        assert ended(process)[:2] == (0, "the last words")


def test_after_the_block_signals_are_as_before():
    program = """
mine = lambda *_: None
signal.signal(signal.SIGINT, mine)
with stopping.listening():
    assert signal.getsignal(signal.SIGINT) != mine
assert signal.getsignal(signal.SIGINT) == mine
assert signal.set_wakeup_fd(-1) == -1
assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
block()
"""
    with running(program) as process:
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == -signal.SIGTERM


def test_other_signals_are_not_wishes_to_stop():
    program = """
got = []
signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
with stopping.listening() as stop:
    print("ready", flush=True)
    while not got:
        time.sleep(0.01)
    time.sleep(0.2)
    assert not stop()
print("went on")
"""
    with running(program) as process:
        process.send_signal(signal.SIGUSR1)
        assert ended(process)[:2] == (0, "went on\n")


@pytest.fixture
def full():
    """A file on a disk without any space, for what a program prints."""
    if not pathlib.Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as file:
        yield file


def test_a_full_disk_under_the_log_lets_a_run_save(full):
    with running(SAVES, stderr=full) as process:
        process.send_signal(signal.SIGTERM)
        assert ended(process)[:2] == (0, "saved\n")


def test_a_full_disk_under_the_log_does_not_keep_the_second_signal_from_being_heard(full):
    with running(BLOCKED, stderr=full) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert ended(process, 3)[0] == 143


def test_a_full_disk_under_the_log_does_not_keep_a_run_without_a_step_alive(full):
    with running(BEFORE_THE_FIRST_STEP, stderr=full) as process:
        process.send_signal(signal.SIGTERM)
        assert ended(process, 3)[0] == 0
