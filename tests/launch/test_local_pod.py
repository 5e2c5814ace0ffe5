"""The local pod, with programs of a few lines: what comes out, how it ends, and what it is told."""

import contextlib
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from launch import local_pod

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# The program as its command starts it, with less patience.
START = """
from launch import local_pod, run_launcher
local_pod.GRACE_SECONDS = {grace}
run_launcher(local_pod.main)
"""
# What programs here begin with.
PROLOGUE = """
import os, pathlib, signal, subprocess, sys, time
me = int(next(x for x in sys.argv if x.startswith("--process_id=")).partition("=")[2])
here = pathlib.Path(__file__).parent
def started(pid):
    (here / f"{pid}.new").touch()
    (here / f"{pid}.new").rename(here / f"{pid}.pid")
started(os.getpid())
"""


@contextlib.contextmanager
def running(directory, program, *arguments, processes=2, grace=0.5, **keywords):
    """The pod, run in the background; nothing of it is left behind."""
    (directory / "program.py").write_text(PROLOGUE + textwrap.dedent(program))
    command = [sys.executable, "-c", START.format(grace=grace), "--program=program"]
    process = subprocess.Popen(
        [*command, f"--processes={processes}", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **keywords,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        for pid in alive(directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def run(directory, program, *arguments, **keywords):
    """Runs the pod to its end: (exit code, lines of output, lines of errors)."""
    with running(directory, program, *arguments, **keywords) as process:
        stdout, stderr = process.communicate(timeout=30)
        assert alive(directory) == []
    return process.returncode, stdout.splitlines(), stderr.decode().splitlines()


def started(directory):
    return [int(file.stem) for file in directory.glob("*.pid")]


def alive(directory):
    """Which of the processes that said their number are still there."""

    def is_alive(pid):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(pid, 0)
            # A grandchild is left to the system, which may take its time to bury it.
            return "\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
        return False

    return [pid for pid in started(directory) if is_alive(pid)]


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_all_run_with_their_number_their_devices_and_the_programs_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_force_host_platform_device_count=3 --b=2")
    program = """
    print(*sys.argv[1:])
    print(os.environ["JAX_PLATFORMS"], os.environ["XLA_FLAGS"], file=sys.stderr)
    """
    code, out, err = run(
        tmp_path, program, "--devices_per_process=5", "--", "--x=1", "--", "y", processes=3
    )
    assert (code, err) == (0, [])
    for number in range(3):
        own = [line.decode() for line in out if line.startswith(b"[%d] " % number)]
        address, rest = own[0].split(maxsplit=2)[1:]
        assert re.fullmatch(r"--coordinator_address=127\.0\.0\.1:\d+", address)
        assert rest == f"--num_processes=3 --process_id={number} --x=1 -- y"
        assert own[1:] == [f"[{number}] cpu --a=1 --b=2 --xla_force_host_platform_device_count=5"]
    assert len({line.split()[1] for line in out if b"coordinator" in line}) == 1


def test_when_one_dies_the_others_end_and_its_last_lines_are_shown(tmp_path):
    program = """
    if me == 1:
        while len(list(here.glob("*.pid"))) < 3:
            time.sleep(0.02)
        print(*(f"line {i}" for i in range(30)), sep="\\n")
        sys.exit(7)
    time.sleep(1000)
    """
    started_at = time.monotonic()
    code, out, err = run(tmp_path, program, processes=3, grace=100)
    assert time.monotonic() - started_at < 20
    assert code == 7
    assert len(out) == 30
    assert err == [
        "local_pod: process 1 ended with exit code 7, so the others were ended; its last lines:",
        *(f"[1] line {i}" for i in range(10, 30)),
    ]


def test_a_mistake_that_every_process_finds_is_printed_once(tmp_path):
    program = """
    while len(list(here.glob("*.pid"))) < 3:
        time.sleep(0.02)
    print("error: epochs must be above 0, got -1", file=sys.stderr)
    time.sleep(0.5)
    sys.exit(2)
    """
    code, out, err = run(tmp_path, program, processes=3, grace=10)
    assert code == 2
    (line,) = out
    assert re.fullmatch(rb"\[\d\] error: epochs must be above 0, got -1", line)
    (sentence,) = err
    assert re.fullmatch(
        r"local_pod: process \d ended with exit code 2, so the others were ended", sentence
    )


def test_the_one_that_died_first_is_named_not_those_that_died_of_it(tmp_path):
    os.mkfifo(tmp_path / "connection")
    program = """
    if me == 2:
        connection = open(here / "connection", "wb")
        while not (here / "go").exists():
            time.sleep(0.02)
        print("x" * 30_000)
        sys.exit(3)
    (here / "connection").read_bytes()  # until its other end is closed
    time.sleep(0.2)
    sys.exit(9)
    """
    with running(tmp_path, program, processes=3) as process:
        wait_until(lambda: len(started(tmp_path)) == 3)
        # However late the pod comes to look.
        process.send_signal(signal.SIGSTOP)
        (tmp_path / "go").touch()
        wait_until(lambda: not alive(tmp_path))
        process.send_signal(signal.SIGCONT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 3
    assert b"process 2 ended with exit code 3" in stderr


def test_one_that_dies_at_once_is_noticed(tmp_path):
    assert run(tmp_path, "os._exit(5)", processes=1)[0] == 5


def test_one_that_a_signal_killed_is_told_by_its_name(tmp_path):
    code, _, err = run(tmp_path, "os.kill(os.getpid(), signal.SIGKILL) if me else time.sleep(1000)")
    assert code == 128 + signal.SIGKILL
    assert "process 1 was killed by SIGKILL" in err[0]


def test_who_does_not_listen_is_killed_with_all_that_it_started(tmp_path):
    program = """
    if me == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        started(subprocess.Popen(["sleep", "1000"]).pid)
        time.sleep(1000)
    while len(list(here.glob("*.pid"))) < 3:
        time.sleep(0.02)
    sys.exit(1)
    """
    assert run(tmp_path, program)[0] == 1
    assert len(started(tmp_path)) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("code", [0, 3])
def test_a_signal_is_passed_on_to_all(tmp_path, number, code):
    """Programs that end well after it, as training does, make a pod that ends well."""
    program = f"""
    def tell(number, frame):
        print("got", number)
        sys.exit({code} if me else 0)
    signal.signal({int(number)}, tell)
    (here / f"{{me}}.ready").touch()
    time.sleep(1000)
    """
    with running(tmp_path, program, grace=100) as process:
        wait_until(lambda: len(list(tmp_path.glob("*.ready"))) == 2)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == (128 + number if code else 0)
    assert sorted(stdout.decode().splitlines()) == [f"[{i}] got {int(number)}" for i in range(2)]
    assert stderr == b""


def test_a_second_interrupt_waits_for_nobody(tmp_path):
    program = """
    signal.signal(signal.SIGINT, lambda number, frame: (here / f"{me}.got").touch())
    (here / f"{me}.ready").touch()
    while True:
        time.sleep(1)
    """
    with running(tmp_path, program, grace=100) as process:
        wait_until(lambda: len(list(tmp_path.glob("*.ready"))) == 2)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: len(list(tmp_path.glob("*.got"))) == 2)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130
        assert alive(tmp_path) == []


def test_lines_of_several_processes_stay_whole(tmp_path):
    program = """
    for i in range(1000):
        sys.stdout.write(f"{i} ")
        sys.stdout.write(str(me) * 150 + "\\n")
    """
    code, out, _ = run(tmp_path, program, processes=3)
    assert code == 0
    for number in range(3):
        own = [line for line in out if line.startswith(b"[%d]" % number)]
        tail = str(number) * 150
        assert own == [f"[{number}] {i} {tail}".encode() for i in range(1000)]


def test_bytes_that_are_no_text_and_a_last_line_without_an_end_come_through(tmp_path):
    code, out, _ = run(tmp_path, 'sys.stdout.buffer.write(b"\\xff\\n\\xc3")', processes=1)
    assert (code, out) == (0, [b"[0] \xff", b"[0] \xc3"])


def test_lines_come_as_they_are_printed(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with running(tmp_path, 'print("now"); time.sleep(1000)', processes=1) as process:
        assert select.select([process.stdout], [], [], 10)[0]
        assert process.stdout.readline() == b"[0] now\n"


def test_what_was_printed_last_comes_through_however_late_the_pod_looks(tmp_path):
    program = """
    while not (here / "go").exists():
        time.sleep(0.02)
    print("last")
    """
    with running(tmp_path, program, processes=1) as process:
        wait_until(lambda: started(tmp_path))
        process.send_signal(signal.SIGSTOP)
        (tmp_path / "go").touch()
        wait_until(lambda: not alive(tmp_path))
        process.send_signal(signal.SIGCONT)
        stdout, _ = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (0, b"[0] last\n")


def test_what_a_process_leaves_behind_ends_with_the_pod(tmp_path):
    code, _, _ = run(tmp_path, 'started(subprocess.Popen(["sleep", "1000"]).pid)', processes=1)
    assert code == 0
    assert len(started(tmp_path)) == 2


def test_gloos_own_lines_are_left_out(tmp_path):
    program = """
    print("[Gloo] Rank 0 is connected to 1 peer ranks. "
          "Expected number of connected peer ranks is : 1\\nhello")
    """
    assert run(tmp_path, program, processes=1)[:2] == (0, [b"[0] hello"])


def test_when_nobody_reads_the_output_any_more_all_end(tmp_path):
    with running(tmp_path, "while True: print(me)") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(20) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""
        assert alive(tmp_path) == []


TEXT = b"a\r\nbar 1\rbar 2\r\n\x1b[31mred\x1b[0m\n  50%\r 100%\x1b[A\n\nrest\r"
SHOWN = [b"a", b"bar 2", b"\x1b[31mred\x1b[0m", b" 100%", b"", b"rest"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_lines_are_what_a_terminal_shows_in_the_end_however_they_come(size):
    lines = local_pod.Lines()
    shown = [
        line for i in range(0, len(TEXT), size) for line in lines.feed(TEXT[i : i + size])
    ] + lines.end()
    assert shown == SHOWN


def test_a_bar_that_never_ends_its_line_takes_no_memory():
    lines = local_pod.Lines()
    for i in range(1000):
        assert lines.feed(b"%d%% done of something\r" % i) == []
    assert len(lines._rest) < 100


def test_the_count_of_devices_of_jaxs_own_does_not_interfere():
    made = local_pod.environment({"JAX_NUM_CPU_DEVICES": "3", "HOME": "/"}, 2)
    assert "JAX_NUM_CPU_DEVICES" not in made
    assert made["HOME"] == "/"
    assert made["XLA_FLAGS"] == "--xla_force_host_platform_device_count=2"


MISTAKES = {
    "--processes=0": "flag --processes=0: 0 is not a positive integer",
    "--devices_per_process=-1": "flag --devices_per_process=-1: -1 is not a positive integer",
    "--config=x": "unknown flag --config: --help lists the flags; the program's own flags",
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_a_mistake_is_one_sentence(tmp_path, argument):
    code, out, err = run(tmp_path, "", argument)
    assert code != 0
    assert out == []
    assert len(err) == 1
    assert err[0].startswith("error: ")
    assert MISTAKES[argument] in err[0]
    assert started(tmp_path) == []


def test_it_starts_without_waiting_for_jax():
    code = "import sys, launch.local_pod; sys.exit(bool({'jax', 'tensorflow'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
