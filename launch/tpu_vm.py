"""Runs a job on Cloud TPU VMs from a machine with gcloud: create, setup, run, watch, delete.

  python -m launch.tpu_vm up --name=NAME --zone=ZONE --type=v3-32 --workdir=gs://BUCKET/RUN \
    --keep_alive --delete_when_done -- --config=configs/efficientnetv2.py:s …

All arguments after ``--`` go to the program. docs/cloud_tpu.md explains the whole way.
"""

import contextlib
import os
import pathlib
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from absl import flags

from effnetv2_jax.runtime.errors import UsageError
from launch import accelerators, job, run_launcher
from launch.gcloud import Kind, Node
from launch.job import Job
from launch.keep_alive import Ended, KeepAlive, Limits, Pace
from launch.lifecycle import Lifecycle
from launch.shell import CallFailed, Shell, say
from launch.workers import Workers

ROOT = pathlib.Path(__file__).resolve().parent.parent

NAME = flags.DEFINE_string("name", None, "Name of the node.")
ZONE = flags.DEFINE_string("zone", None, "Zone of the node, as in europe-west4-a.")
PROJECT = flags.DEFINE_string("project", "", "Project of the node. gcloud's own by default.")
TYPE = flags.DEFINE_string("type", None, "Accelerator type, as in v3-32 or v5litepod-16.")
RUNTIME_VERSION = flags.DEFINE_string(
    "runtime_version", "", "Image of the VMs. The accelerator type's own by default."
)
QUEUED = flags.DEFINE_bool("queued", False, "Ask for the node through a queued resource.")
SPOT = flags.DEFINE_bool("spot", False, "Make a node that is cheaper and may be taken away.")
RESERVED = flags.DEFINE_bool("reserved", False, "Make the node from a reservation.")
VALID_UNTIL = flags.DEFINE_string(
    "valid_until",
    "",
    "Longest time that a queued resource may wait, as in 6h. Without a limit by default.",
)
CREATE_FLAGS = flags.DEFINE_multi_string(
    "create_flag", [], "One more flag for gcloud's create, as in --network=NAME."
)
SSH_FLAGS = flags.DEFINE_multi_string(
    "ssh_flag", [], "One more flag for gcloud's ssh and scp, as in --internal-ip."
)
TRACK = flags.DEFINE_string("track", "", "Track of gcloud's commands: alpha, or empty.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Workdir of the run: gs://BUCKET/PATH, or a folder that all workers share."
)
PROGRAM = flags.DEFINE_string("program", "effnetv2_jax.train", "Module to run.")
ENV = flags.DEFINE_list(
    "env", [], "Variables for the program: NAME=VALUE, or NAME for the value that it has here."
)
PYTHON = flags.DEFINE_string("python", "3.11", "Version of the interpreter on the workers.")
REQUIREMENTS = flags.DEFINE_string(
    "requirements",
    str(ROOT / "launch" / "requirements-tpu.txt"),
    "File with exact versions of packages.",
)
GIT_REF = flags.DEFINE_string(
    "git_ref", "", "Commit, tag or branch to run. The working tree is shipped by default."
)
GIT_URL = flags.DEFINE_string("git_url", "", "Repository that has --git_ref.")
KEEP_ALIVE = flags.DEFINE_bool("keep_alive", False, "up: After a loss, go on with another node.")
MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts", 50, "up: Largest number of restarts with --keep_alive.", lower_bound=1
)
BUDGET_HOURS = flags.DEFINE_float(
    "budget_hours",
    None,
    "up: Hours that all nodes together may be ready. After that the node is deleted.",
)
DELETE_WHEN_DONE = flags.DEFINE_bool(
    "delete_when_done", False, "up: Delete the node at the end, however the job ended."
)
POLL_SECONDS = flags.DEFINE_float(
    "poll_seconds", 30.0, "Seconds between two looks at a node or job.", lower_bound=0.0
)
SETTLE_SECONDS = flags.DEFINE_float(
    "settle_seconds", 180.0, "Seconds that gcloud gets to say that a node is lost.", lower_bound=0.0
)
BACKOFF_SECONDS = flags.DEFINE_float(
    "backoff_seconds", 30.0, "Seconds before another node, doubled each time.", lower_bound=0.0
)
RETRY_SECONDS = flags.DEFINE_float(
    "retry_seconds", 5.0, "Seconds before a failed call is tried again.", lower_bound=0.0
)
WORKER = flags.DEFINE_string("worker", None, "logs, ssh, copy: Number of a worker, from 0, or all.")
LINES = flags.DEFINE_integer(
    "lines", 50, "logs: Number of lines at the end of the log.", lower_bound=0
)
FOLLOW = flags.DEFINE_bool("follow", False, "logs: Also show new lines, until Ctrl-C.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands and run none.")


def make_lifecycle() -> Lifecycle:
    node = Node(
        name=_needed("name", NAME.value),
        zone=_needed("zone", ZONE.value),
        project=PROJECT.value,
        accelerator=accelerators.find(TYPE.value) if TYPE.value else None,
        runtime_version=RUNTIME_VERSION.value,
        queued=QUEUED.value,
        spot=SPOT.value,
        reserved=RESERVED.value,
        valid_until=VALID_UNTIL.value,
        track=TRACK.value,
        create_flags=tuple(CREATE_FLAGS.value),
        ssh_flags=tuple(SSH_FLAGS.value),
    )
    shell = Shell(dry_run=DRY_RUN.value, pause=RETRY_SECONDS.value)
    return Lifecycle(node, shell, POLL_SECONDS.value)


def make_workers(lifecycle: Lifecycle, words: Sequence[str]) -> Workers:
    wanted = Job(
        workdir=_needed("workdir", WORKDIR.value),
        program=PROGRAM.value,
        arguments=tuple(words),
        environment=job.read_environment(ENV.value, os.environ),
        python=PYTHON.value,
        git_url=GIT_URL.value,
        git_ref=GIT_REF.value,
    )
    requirements = pathlib.Path(REQUIREMENTS.value)
    if not requirements.is_file():
        raise UsageError(f"requirements {REQUIREMENTS.value!r} is not a file")
    return Workers(lifecycle.node, lifecycle.shell, wanted, requirements, ROOT)


def create(words: Sequence[str]) -> int:
    """Makes a node, and waits until it is ready."""
    _none("create", words)
    _needed("type", TYPE.value)
    lifecycle = make_lifecycle()
    with _telling_what_is_left(lifecycle):
        lifecycle.create()
        now = lifecycle.wait_until_ready()
        if DRY_RUN.value:
            return 0
        if now.kind is not Kind.READY:
            raise Ended(f"{lifecycle.node.name} is not ready: {now.text}")
    say(f"{lifecycle.node.name}: {now.text}, workers: {now.workers}")
    return 0


def setup(words: Sequence[str]) -> int:
    """Puts the code and the packages onto the workers."""
    _none("setup", words)
    lifecycle = make_lifecycle()
    workers = make_workers(lifecycle, ())
    workers.pack()
    with _telling_what_is_left(lifecycle):
        workers.setup()
    return 0


def run(words: Sequence[str]) -> int:
    """Starts the job on the workers, without watching it."""
    lifecycle = make_lifecycle()
    workers = make_workers(lifecycle, words)
    with _telling_what_is_left(lifecycle):
        workers.start()
    return 0


def status(words: Sequence[str]) -> int:
    """Shows how the node and the job stand."""
    _none("status", words)
    lifecycle = make_lifecycle()
    now = lifecycle.condition()
    if not DRY_RUN.value:
        print(f"{lifecycle.node.name}: {now.text}, workers: {now.workers}")
    if now.kind is Kind.READY or DRY_RUN.value:
        command = lifecycle.node.ssh(job.report_command())
        for report in job.read_reports(lifecycle.shell.ask(command) or ""):
            print(f"{report.host}: {report.text}")
    return 0


def logs(words: Sequence[str]) -> int:
    """Shows the end of the log of worker 0, or of others."""
    _none("logs", words)
    lifecycle = make_lifecycle()
    lifecycle.shell.run(
        lifecycle.node.ssh(job.log_command(LINES.value, FOLLOW.value), _worker("0"))
    )
    return 0


def ssh(words: Sequence[str]) -> int:
    """Opens a shell on worker 0, or runs a command on it or on others."""
    lifecycle = make_lifecycle()
    if not words and _worker("0") == "all":
        raise UsageError("a shell needs one worker: use --worker=NUMBER, or a command after --")
    return lifecycle.shell.become(lifecycle.node.ssh(shlex.join(words), _worker("0")))


def copy(words: Sequence[str]) -> int:
    """Copies files to all workers, or from one; paths on workers begin with a colon."""
    lifecycle = make_lifecycle()
    remote = [path.startswith(":") for path in words]
    if len(words) < 2 or remote[-1] == any(remote[:-1]) or remote[-1] == all(remote[:-1]):
        raise UsageError(
            "copy takes SOURCE… DESTINATION, where paths on workers, the destination or all "
            "sources, begin with a colon"
        )
    worker = _worker("all" if remote[-1] else "0")
    lifecycle.shell.run(lifecycle.node.scp(words[:-1], words[-1], worker, recurse=True))
    return 0


def stop(words: Sequence[str]) -> int:
    """Asks the job to save and stop; the node stays."""
    _none("stop", words)
    lifecycle = make_lifecycle()
    lifecycle.shell.run(lifecycle.node.ssh(job.stop_command()))
    _say_what_is_left(lifecycle)
    return 0


def delete(words: Sequence[str]) -> int:
    """Removes the node and its queued resource."""
    _none("delete", words)
    lifecycle = make_lifecycle()
    with _telling_what_is_left(lifecycle):
        lifecycle.delete()
    _say_what_is_left(lifecycle)
    return 0


def up(words: Sequence[str]) -> int:
    """Does everything in order: create, setup, run, watch, and delete if wanted."""
    _needed("type", TYPE.value)
    lifecycle = make_lifecycle()
    workers = make_workers(lifecycle, words)
    if BUDGET_HOURS.value is not None and BUDGET_HOURS.value <= 0:
        raise UsageError(f"budget_hours must be above 0, got {BUDGET_HOURS.value}")
    keep_alive = KeepAlive(
        lifecycle,
        workers,
        Limits(MAX_RESTARTS.value if KEEP_ALIVE.value else 0, BUDGET_HOURS.value),
        Pace(POLL_SECONDS.value, SETTLE_SECONDS.value, BACKOFF_SECONDS.value),
    )
    if DRY_RUN.value:
        keep_alive.plan()
        if DELETE_WHEN_DONE.value:
            lifecycle.delete()
        return 0
    workers.pack()
    lifecycle.refuse_others()
    try:
        code = _to_the_end(keep_alive)
    finally:
        # This also runs after errors that nobody expected.
        is_clean = _clean_up(lifecycle)
    return code if is_clean else code or 1


def _to_the_end(keep_alive: KeepAlive) -> int:
    try:
        keep_alive.run()
    except (Ended, CallFailed) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 128 + signal.SIGINT
    say("the job is done")
    return 0


def _clean_up(lifecycle: Lifecycle) -> bool:
    """Removes the node if wanted, and says what is left; returns False if that failed."""
    is_clean = True
    try:
        if DELETE_WHEN_DONE.value:
            lifecycle.delete()
    except (CallFailed, KeyboardInterrupt) as error:
        say(f"error: {error or 'interrupted'}")
        is_clean = False
    say(lifecycle.leftovers())
    return is_clean


@contextlib.contextmanager
def _telling_what_is_left(lifecycle: Lifecycle) -> Iterator[None]:
    try:
        yield
    except (Ended, CallFailed, KeyboardInterrupt):
        say(lifecycle.leftovers())
        raise


def _say_what_is_left(lifecycle: Lifecycle) -> None:
    if not DRY_RUN.value:
        say(lifecycle.leftovers())


def _needed(name: str, value: str | None) -> str:
    if not value:
        raise UsageError(f"--{name} is needed")
    return value


def _none(command: str, words: Sequence[str]) -> None:
    if words:
        raise UsageError(f"{command} takes no arguments but flags, got {words[0]!r}")


def _worker(default: str) -> str:
    worker = default if WORKER.value is None else WORKER.value
    if worker != "all" and not worker.isdecimal():
        raise UsageError(f"worker must be a number from 0, or all, got {worker!r}")
    return worker


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    function.__name__: function
    for function in (create, setup, run, status, logs, ssh, copy, stop, delete, up)
}


def main(words: list[str]) -> int:
    if not words or words[0] not in COMMANDS:
        got = f"got {words[0]!r}" if words else "got none"
        raise UsageError(f"the first argument must be one of {', '.join(COMMANDS)}, {got}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return COMMANDS[words[0]](words[1:])
    except (Ended, CallFailed) as error:
        say(f"error: {error}")
        return 1


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Flags may also come after the command.
    flags.FLAGS.set_gnu_getopt(True)
    run_launcher(main)
