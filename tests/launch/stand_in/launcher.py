"""The launcher as a command, with a stand-in for Google Cloud and a small job for it to run."""

import dataclasses
import os
import pathlib
import shlex
import signal
import stat
import subprocess
import sys
import time

from tests.launch.stand_in.cloud import Cloud

STAND_IN = pathlib.Path(__file__).resolve().parent
ROOT = STAND_IN.parent.parent.parent
# Counts to 12, and remembers where it was: what a run is, in a moment. Like a run's processes, the
# workers of a node fail when one of them is gone, and stop when they are asked to.
JOB = """
import json, os, pathlib, signal, sys, time

arguments = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[1:])
workdir = pathlib.Path(arguments["workdir"])
rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
workdir.mkdir(parents=True, exist_ok=True)
(workdir / f"environment.{rank}").write_text(json.dumps(dict(os.environ)))
place = workdir / f"step.{rank}"
step = int(place.read_text()) if place.exists() else 0
print("from step", step, *sys.argv[1:], flush=True)
steps, fails = int(arguments.get("steps", 12)), arguments.get("fails", "")
while step < steps and not stopping:
    time.sleep(float(arguments.get("seconds", 0.02)))
    step += 1
    place.with_suffix(f".{rank}.new").write_text(str(step))
    place.with_suffix(f".{rank}.new").replace(place)
    if fails == f"{rank}@{step}":
        sys.exit(7)
state = "finished" if step == steps else "stopped"
if rank == 0:
    status = {"state": state, "step": step, "total_steps": steps}
    (workdir / "status.json").write_text(json.dumps(status, indent=2))
print(state, "after step", step)
"""


@dataclasses.dataclass
class Launcher:
    """``python -m launch.tpu_vm`` with a stand-in for gcloud on its PATH."""

    cloud: Cloud
    environment: dict[str, str]
    commit: str = ""

    name = "pod"
    workdir = "gs://bucket/run"

    def command(self, command, *arguments, job=(), pace=0.05):
        return [
            *(sys.executable, "-m", "launch.tpu_vm", command, f"--name={self.name}"),
            "--zone=europe-west4-a",
            *(f"--{name}_seconds={pace}" for name in ("poll", "backoff", "retry")),
            f"--settle_seconds={2 * pace}",
            *arguments,
            *(["--", *job] if job else []),
        ]

    def start(self, *arguments, **keywords):
        """In the background."""
        return subprocess.Popen(
            self.command(*arguments, **keywords),
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Whoever runs tests in the background ignores it, and that would be inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *arguments, timeout=60, **keywords):
        """Returns (exit code, standard output, standard error)."""
        process = self.start(*arguments, **keywords)
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        assert "Traceback" not in err, err
        return process.returncode, out, err

    def up(self, *arguments, type="v4-16", job=(), **keywords):
        """The flags of ``up`` with the small job."""
        return (
            *("up", f"--type={type}", f"--workdir={self.workdir}", "--program=small_job"),
            *("--git_url=https://stand-in.example/small", f"--git_ref={self.commit}"),
            *arguments,
        ), {"job": job, **keywords}

    def clean_up(self, err):
        """Runs the clean-up command that was printed; returns whether there was one."""
        commands = [
            line.partition("remove it with: ")[2]
            for line in err.splitlines()
            if "remove it" in line
        ]
        for command in commands[-1:]:
            assert shlex.split(command)[0] == "gcloud"
            subprocess.run(command, shell=True, env=self.environment, check=True, timeout=60)
        return bool(commands)

    @property
    def folder(self):
        """The workdir in the bucket."""
        return self.cloud.folder / "buckets" / self.workdir.removeprefix("gs://")

    def results(self):
        """The steps that the workers got to."""
        return [path.read_text() for path in sorted(self.folder.glob("step.?"))]

    def verbs(self):
        """The verbs of all calls of gcloud except describe."""
        return [call[3] for call in self.cloud.calls() if call[3] != "describe"]


def make_launcher(tmp_path):
    """A launcher with a cloud of its own, which is to be closed."""
    cloud = Cloud(tmp_path / "cloud")
    (cloud.folder / "buckets" / "bucket").mkdir()
    program = tmp_path / "bin" / "gcloud"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {STAND_IN}/gcloud.py "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "STAND_IN": str(cloud.folder),
        "STAND_IN_PYTHON": sys.executable,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    return Launcher(cloud, environment, commit_job(cloud.folder / "git" / "small"))


def commit_job(folder):
    """Makes a repository with the small job; returns its commit."""
    folder.mkdir(parents=True)
    (folder / "small_job.py").write_text(JOB)
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")

    def git(*arguments):
        command = ["git", "-C", str(folder), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message=A job")
    return git("rev-parse", "HEAD")


def wait_until(condition, timeout=60):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def interrupt(process, number=signal.SIGINT):
    """Sends a signal to a launcher; returns (exit code, standard error)."""
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err
