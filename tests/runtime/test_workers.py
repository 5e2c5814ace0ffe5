"""Workers: their answers, their errors, and that they end with whoever started them."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from effnetv2_jax.runtime.workers import Worker, WorkerError, process_group

SERVED = """
import json, os, subprocess, sys, time

class Served:
    def __init__(self, number, tell):
        self.number, self.tell = number, tell
        if number < 0:
            raise ValueError("number is negative")

    def add(self, other):
        print("a library's noise")
        self.tell("adding")
        return self.number + other

    def fail(self):
        raise ValueError("no\\n  luck")

    def die(self):
        print("out of luck", file=sys.stderr)
        os._exit(3)

    def path(self):
        return sys.path

    def start_child(self):
        return subprocess.Popen(["sleep", "600"]).pid

    def sleep(self, seconds):
        time.sleep(seconds)
"""


@pytest.fixture
def served(tmp_path):
    file = tmp_path / "served.py"
    file.write_text(SERVED)
    return file


def is_alive(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until_dead(pid, seconds=10.0):
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(pid)


def test_a_method_is_called_in_another_process(served):
    told = []
    with Worker(served, "Served", {"number": 2}) as worker:
        assert worker.call("add", other=3, on_tell=told.append) == 5
        # Modules beside workers.py are not found under their short names.
        assert not [path for path in worker.call("path") if path.endswith("effnetv2_jax/runtime")]
        assert worker.process.pid != os.getpid()
    assert told == ["adding"]


def test_exceptions_come_back_with_their_kind(served):
    with Worker(served, "Served", {"number": 2}) as worker:
        with pytest.raises(WorkerError, match=r"^no luck$") as error:
            worker.call("fail")
        assert error.value.kind == "ValueError"
        assert worker.call("add", other=1) == 3
    with Worker(served, "Served", {"number": -1}) as worker, pytest.raises(WorkerError) as error:
        worker.call("add", other=1)
    assert str(error.value) == "number is negative"
    with Worker("no_such_module", "Served") as worker, pytest.raises(WorkerError) as error:
        worker.call("add")
    assert str(error.value) == "no_such_module is not installed"


def test_a_dead_worker_leaves_its_last_words(served):
    with Worker(served, "Served", {"number": 2}) as worker:
        for _ in range(2):
            with pytest.raises(WorkerError, match=r"ended \(exit code 3\): out of luck") as error:
                worker.call("die")
            assert error.value.kind is None
    with Worker(served, "Served", {"number": 2}) as worker:
        os.kill(worker.process.pid, signal.SIGTERM)
        with pytest.raises(WorkerError, match=r"its process ended \(SIGTERM\)"):
            worker.call("add", other=1)


def test_an_interpreter_that_does_not_start_is_named(served):
    with pytest.raises(WorkerError, match=r"^/nowhere does not start: No such file or directory$"):
        Worker(served, "Served", python="/nowhere")


@pytest.mark.parametrize("how", ["the block", "an error"])
def test_leaving_ends_the_worker_and_what_it_has_started(served, how):
    worker = Worker(served, "Served", {"number": 2})
    child = worker.call("start_child")
    assert is_alive(child)
    try:
        with worker:
            if how == "an error":
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert wait_until_dead(worker.process.pid, 1) and wait_until_dead(child, 1)


def test_a_worker_and_what_it_has_started_end_with_a_parent_that_is_killed(served):
    code = f"""
        from effnetv2_jax.runtime.workers import Worker
        worker = Worker({str(served)!r}, "Served", {{"number": 2}})
        print(worker.process.pid, worker.call("start_child"), flush=True)
        worker.call("sleep", seconds=600)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    with parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert all(map(is_alive, pids)) and len(pids) == 2
        parent.kill()
    assert all(map(wait_until_dead, pids))


def test_any_program_ends_with_its_block():
    with process_group(
        ["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE
    ) as process:
        child = int(process.stdout.readline())
        assert is_alive(child)
    assert process.returncode == -signal.SIGKILL and wait_until_dead(child, 1)
