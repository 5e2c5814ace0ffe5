"""Several processes as one run: alone, told wrongly, and two real ones that (dis)agree."""

import os
import pathlib
import socket
import subprocess
import sys
import textwrap
import time

import jax
import pytest

from effnetv2_jax.runtime import hosts
from effnetv2_jax.runtime.errors import UsageError

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def python(code, **environment):
    """Runs code in a process of its own, where JAX has not started yet; returns its output."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_an_ordinary_machine_runs_alone_at_once():
    code = """
    import time
    import jax
    from effnetv2_jax.runtime import hosts
    started = time.perf_counter()
    hosts.start()
    print(time.perf_counter() - started < 1, jax.distributed.is_initialized())
    hosts.start("nobody.invalid:1", 1, 0)  # and whatever is said, one process is alone
    print(jax.distributed.is_initialized(), hosts.is_first())
    """
    assert python(code) == ["True False", "False True"]


def test_an_environment_that_says_half_of_it_is_refused():
    code = """
    from effnetv2_jax.runtime import hosts
    from effnetv2_jax.runtime.errors import UsageError
    try:
        hosts.start()
    except UsageError as error:
        print(error)
    hosts.start(num_processes=1)
    """
    (sentence,) = python(code, JAX_COORDINATOR_ADDRESS="localhost:1234")
    assert sentence.startswith("the environment announces processes but not all ")
    (sentence,) = python(code, OMPI_MCA_orte_hnp_uri="1531576320.0;nonsense")
    assert sentence.startswith("the processes that the environment announces did not meet (")
    assert sentence.endswith("start all of them, or use --num_processes=1 to run alone")


MISTAKES = [
    (("localhost:1234", None, None), "num_processes and process_id not given"),
    (("localhost:1234", 4, None), "belong together, process_id not given"),
    ((None, 4, 0), "belong together, coordinator_address not given"),
    ((None, None, 0), "belong together, num_processes and coordinator_address not given"),
    (("localhost:1234", 0, 0), "num_processes must be at least 1, got 0"),
    (("localhost:1234", 4, 4), "process_id must be in 0 … 3 with num_processes 4, got 4"),
    (("localhost:1234", 4, -1), "process_id must be in 0 … 3 with num_processes 4, got -1"),
    (("localhost:1234", 1, 1), "process_id must be in 0 … 0 with num_processes 1, got 1"),
    (("localhost", 4, 0), "coordinator_address must be HOST:PORT, got 'localhost'"),
    (("localhost:http", 4, 0), "coordinator_address must be HOST:PORT, got 'localhost:http'"),
    (("localhost:70000", 4, 0), "coordinator_address must be HOST:PORT, got 'localhost:70000'"),
    ((":1234", 4, 0), "coordinator_address must be HOST:PORT, got ':1234'"),
]


@pytest.fixture
def no_initialize(monkeypatch):
    def initialize(*arguments, **keywords):
        raise AssertionError((arguments, keywords))

    monkeypatch.setattr(jax.distributed, "initialize", initialize)


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_sentence(arguments, message, no_initialize):
    with pytest.raises(UsageError) as error:
        hosts.start(*arguments, timeout=1)
    assert message in str(error.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "nobody.invalid"])
def test_a_coordinator_that_cannot_be_reached_is_named(host, no_initialize):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{host}:{free.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(UsageError, match=f"process 0 does not answer.*'{address}' within 1 s: "):
        hosts.start(address, 2, 1, timeout=1)
    assert 1 <= time.monotonic() - started < 10


def test_a_coordinators_port_that_is_taken_is_named(no_initialize):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"cannot listen at coordinator_address '{address}'"):
            hosts.start(address, 2, 0)


def test_one_process_agrees_waits_for_nobody_and_goes_first():
    hosts.agree({"a": 1})
    with hosts.first_alone("there"):
        assert hosts.is_first()


LOCAL_POD = (sys.executable, "-m", "launch.local_pod")
# What each of them begins with.
TOGETHER = """
import os, pathlib, sys, time
given = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
me = int(given["process_id"])
"""


def together(directory, program):
    (directory / "program.py").write_text(TOGETHER + textwrap.dedent(program))
    result = subprocess.run(
        [*LOCAL_POD, "--processes=2", "--devices_per_process=2", "--program=program"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{directory}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return sorted(result.stdout.splitlines())


def test_two_processes_meet_agree_and_name_what_differs(tmp_path):
    program = """
    import jax
    from effnetv2_jax.runtime import hosts
    from effnetv2_jax.runtime.errors import UsageError
    hosts.start(given["coordinator_address"], int(given["num_processes"]), me)
    print("of", jax.process_count(), hosts.is_first(), jax.device_count())
    hosts.agree({"name": "x", "sizes": [1, 2], "rate": 0.1})
    values = [{"a": 64, "b": 1, "c": "no"}, {"a": 32, "b": 1, "c": "", "d": None}]
    try:
        hosts.agree(values[me])
    except UsageError as error:
        print(error)
    made = pathlib.Path(__file__).parent / "made"
    with hosts.first_alone("made"):
        if hosts.is_first():
            time.sleep(1)
            made.touch()
        print("made", made.exists())
    for failing in range(2):
        try:
            with hosts.first_alone("failing"):
                if me == failing:
                    raise UsageError("no such folder")
        except UsageError as error:
            print(f"{failing} failed: {error}")
    """
    disagreement = (
        "processes disagree on the config: a (process 0: 64, process 1: 32), "
        "c (process 0: 'no', process 1: ''), d (process 0: not there, process 1: None)"
    )
    assert together(tmp_path, program) == [
        line
        for i in range(2)
        for line in (
            f"[{i}] 0 failed: {'process 0: ' if i == 1 else ''}no such folder",
            f"[{i}] 1 failed: {'process 1: ' if i == 0 else ''}no such folder",
            f"[{i}] made True",
            f"[{i}] of 2 {i == 0} 4",
            f"[{i}] {disagreement}",
        )
    ]


def test_two_processes_with_other_devices_disagree(tmp_path):
    program = """
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={me + 1}"
    from effnetv2_jax.runtime import hosts
    from effnetv2_jax.runtime.errors import UsageError
    hosts.start(given["coordinator_address"], int(given["num_processes"]), me)
    try:
        hosts.agree({})
    except UsageError as error:
        print(error)
    """
    disagreement = "processes disagree on the machine: devices (process 0: 1, process 1: 2)"
    assert together(tmp_path, program) == [f"[{i}] {disagreement}" for i in range(2)]
