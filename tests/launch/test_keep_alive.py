"""``up`` on nodes that are taken away, calls that fail, and jobs that do: what is left."""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from launch.gcloud import Kind, condition
from launch.job import Outcome, Report, overall
from launch.keep_alive import Pace
from tests.launch.stand_in.launcher import ROOT, interrupt, wait_until

LONG = ["--steps=100000"]


@contextlib.contextmanager
def running(launcher, *arguments, **keywords):
    """``up`` in the background, once the job has made a step on every worker."""
    arguments, keywords = launcher.up(*arguments, **keywords)
    process = launcher.start(*arguments, **keywords)
    try:
        wait_until(lambda: len(launcher.results()) == 2 or process.poll() is not None)
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process):
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return process.returncode, err


def node_id(launcher):
    return (launcher.cloud.read("nodes", "pod") or {}).get("id")


def await_another(launcher, node):
    wait_until(lambda: node_id(launcher) not in (None, node))


def processes(launcher, worker, text):
    """Those of a worker whose command line has a text in it."""
    found = []
    for pid in launcher.cloud.processes("pod"):
        with contextlib.suppress(OSError):
            folder = pathlib.Path(f"/proc/{pid}")
            environment = (folder / "environ").read_bytes()
            command = (folder / "cmdline").read_bytes()
            if f"-w-{worker}\0".encode() in environment and text.encode() in command:
                found.append(pid)
    return found


def send(number, launcher, worker, text=""):
    """Sends a signal to those ``processes``; some end by themselves meanwhile, a ``sleep`` say."""
    for pid in processes(launcher, worker, text):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.parametrize(
    ("seed", "queued"),
    [
        (1, True),
        *(pytest.param(seed, seed % 2 > 0, marks=pytest.mark.slow) for seed in (0, *range(2, 10))),
    ],
)
def test_preempted_twice_at_random_times_it_ends_alike(launcher, seed, queued):
    times = random.Random(seed)
    flags = ["--keep_alive", "--delete_when_done", *(["--queued", "--spot"] if queued else [])]
    with running(launcher, *flags, job=["--steps=40"]) as process:
        for _ in range(2):
            time.sleep(0.5 * times.random())
            node = node_id(launcher)
            assert process.poll() is None
            launcher.cloud.preempt("pod")
            await_another(launcher, node)
        code, err = ended(process)
    assert code == 0, err
    assert launcher.results() == ["40", "40"]
    assert launcher.verbs().count("create") == 3
    assert launcher.cloud.everything() == []
    assert "nothing is left of pod" in err


# Other states are below, in what gcloud says.
LOSSES = {
    "in maintenance": lambda cloud: cloud.set_state("pod", "READY", "UNHEALTHY_MAINTENANCE"),
    "gone": lambda cloud: cloud.delete_node("pod"),
}


@pytest.mark.parametrize(
    # How a node in maintenance is judged is tested below.
    "loss",
    ["gone", pytest.param("in maintenance", marks=pytest.mark.slow)],
)
def test_a_node_that_is_lost_otherwise_is_replaced(launcher, loss):
    with running(launcher, "--keep_alive", "--delete_when_done", job=["--steps=40"]) as process:
        LOSSES[loss](launcher.cloud)
        code, err = ended(process)
    assert code == 0, err
    assert launcher.results() == ["40", "40"]
    assert launcher.verbs().count("create") == 2
    assert launcher.cloud.everything() == []


def test_without_keep_alive_a_loss_ends_it_and_the_same_command_goes_on(launcher):
    with running(launcher, job=["--steps=40"]) as process:
        launcher.cloud.preempt("pod")
        code, err = ended(process)
    assert code == 1
    assert "error: node PREEMPTED: the same command goes on, and --keep_alive does" in err
    arguments, keywords = launcher.up("--delete_when_done", "--keep_alive", job=["--steps=40"])
    code, _, err = launcher.run(*arguments, **keywords)
    assert code == 0, err
    assert launcher.results() == ["40", "40"]
    assert launcher.cloud.everything() == []


def test_restarts_are_limited(launcher):
    flags = ["--keep_alive", "--delete_when_done", "--max_restarts=1"]
    with running(launcher, *flags, job=LONG) as process:
        node = node_id(launcher)
        launcher.cloud.preempt("pod")
        await_another(launcher, node)
        launcher.cloud.preempt("pod")
        code, err = ended(process)
    assert code == 1
    assert "error: node PREEMPTED: all 1 restarts are used up" in err
    assert launcher.cloud.everything() == []


def test_a_spent_budget_stops_the_job_and_removes_the_node(launcher):
    with running(launcher, "--keep_alive", "--budget_hours=0.0004", job=LONG) as process:
        code, err = ended(process)
    assert code == 1
    assert "error: the budget of 0.0004 h is spent; the same command goes on" in err
    assert '"state": "stopped"' in (launcher.folder / "status.json").read_text()
    assert launcher.cloud.everything() == []


def test_a_job_that_fails_is_not_tried_again(launcher):
    arguments, keywords = launcher.up("--keep_alive", job=["--fails=1@3"])
    code, out, err = launcher.run(*arguments, **keywords)
    assert code == 1
    assert "finished after step 12" in out  # the other's log
    assert "error: the job failed; its logs are in gs://bucket/run/logs" in err
    assert launcher.verbs().count("create") == 1
    assert launcher.cloud.everything() == ["pod"]
    assert launcher.clean_up(err)
    assert launcher.cloud.everything() == []


def test_one_worker_that_failed_has_the_others_stopped(launcher):
    flags = ["--keep_alive", "--delete_when_done"]
    arguments, keywords = launcher.up(*flags, job=[*LONG, "--fails=1@3"])
    code, _, err = launcher.run(*arguments, **keywords)
    assert code == 1
    assert "not all workers run the job: stopping the others" in err
    assert "error: the job failed" in err
    assert launcher.verbs().count("create") == 1
    assert launcher.cloud.everything() == []


def test_a_worker_that_went_down_has_the_job_started_again_on_the_same_node(launcher):
    with running(launcher, "--keep_alive", "--delete_when_done", job=["--steps=50"]) as process:
        send(signal.SIGKILL, launcher, 1)
        code, err = ended(process)
    assert code == 0, err
    assert "the job is missing on a node that is ready: restart 1 of at most 50" in err
    assert launcher.results() == ["50", "50"]
    assert launcher.verbs().count("create") == 1


def test_machines_that_tell_the_job_to_stop_are_no_end_of_it(launcher):
    """As a shutdown does, which tells every process; each saves and ends well."""
    with running(launcher, "--keep_alive", "--delete_when_done", job=["--steps=50"]) as process:
        for worker in range(2):
            for text in ("supervise.sh", "small_job"):
                send(signal.SIGTERM, launcher, worker, text)
        code, err = ended(process)
    assert code == 0, err
    assert "the job is interrupted on a node that is ready" in err
    assert launcher.results() == ["50", "50"]


def test_what_somebody_stops_stays_stopped(launcher):
    with running(launcher, "--keep_alive", job=LONG) as process:
        assert launcher.run("stop")[0] == 0
        code, err = ended(process)
    assert code == 1
    assert "error: somebody has stopped the job" in err
    assert launcher.clean_up(err)
    assert launcher.cloud.everything() == []


def test_the_same_command_watches_a_job_that_runs_already(launcher):
    with running(launcher, job=["--steps=100"]) as process:
        assert interrupt(process)[0] == 130
        first = node_id(launcher)
        arguments, keywords = launcher.up("--delete_when_done", job=["--steps=100"])
        code, _, err = launcher.run(*arguments, **keywords)
    assert code == 0, err
    assert "the job runs already: watching it" in err
    assert launcher.results() == ["100", "100"]
    assert launcher.verbs().count("create") == 1
    assert first == "pod-0"


def test_interrupted_it_deletes_what_it_was_to_delete(launcher):
    with running(launcher, "--keep_alive", "--delete_when_done", job=LONG) as process:
        code, err = interrupt(process)
    assert code == 130
    assert "nothing is left of pod" in err
    assert launcher.cloud.everything() == []


def test_what_nobody_has_foreseen_leaves_nothing_either(launcher):
    arguments, keywords = launcher.up("--delete_when_done")
    program = """
import sys
from absl import flags
from launch import keep_alive, run_launcher, tpu_vm
def fail(*arguments):
    raise OSError("disk full")
keep_alive.KeepAlive._watch = fail
flags.FLAGS.set_gnu_getopt(True)
run_launcher(tpu_vm.main)
"""
    command = launcher.command(*arguments, **keywords)
    result = subprocess.run(
        [sys.executable, "-c", program, *command[3:]],
        cwd=ROOT,
        env=launcher.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "disk full" in result.stderr
    assert launcher.verbs()[-1] == "delete"
    assert launcher.cloud.everything() == []


def test_no_node_of_another_type_is_taken_for_ours(launcher):
    assert launcher.run("create", "--type=v4-8")[0] == 0
    arguments, keywords = launcher.up("--delete_when_done", "--keep_alive")
    code, _, err = launcher.run(*arguments, **keywords)
    assert code == 2
    assert "error: node 'pod' exists, and is a v4-8 instead of v4-16: use another name" in err
    assert launcher.cloud.everything() == ["pod"]


def test_without_capacity_it_waits_and_tries_again_but_not_without_permission(launcher):
    launcher.cloud.fail_at("create", "before", '{"code": 8, "message": "no more capacity"}')
    arguments, keywords = launcher.up("--keep_alive", "--delete_when_done", "--max_restarts=2")
    code, _, err = launcher.run(*arguments, **keywords)
    assert code == 1
    assert launcher.verbs().count("create") == 3
    assert err.count("another node in ") == 2
    launcher.cloud.fail_at("create", "before", "PERMISSION_DENIED: not yours")
    code, _, err = launcher.run(*arguments, **keywords)
    assert code == 1
    assert launcher.verbs().count("create") == 4
    assert "PERMISSION_DENIED: not yours" in next(x for x in err.splitlines() if "error: " in x)


def test_what_gcloud_says_is_judged():
    ready = {"state": "READY", "networkEndpoints": [{}, {}], "acceleratorType": "v4-16"}
    assert condition(ready).kind is Kind.READY
    assert (condition(ready).workers, condition(ready).accelerator_type) == (2, "v4-16")
    assert condition(None).kind is Kind.ABSENT
    assert condition(ready | {"health": "UNHEALTHY_MAINTENANCE"}).kind is Kind.LOST
    for state in ("CREATING", "STARTING", "RESTARTING", "REIMAGING"):
        assert condition({"state": state}).kind is Kind.WAITING
    for state in ("PREEMPTED", "TERMINATED", "STOPPED", "DELETING", "REPAIRING", "HIDDEN", "NEW"):
        assert condition({"state": state}).kind is Kind.LOST
    for state, kind in {
        "ACCEPTED": Kind.WAITING,
        "WAITING_FOR_RESOURCES": Kind.WAITING,
        "PROVISIONING": Kind.WAITING,
        "ACTIVE": Kind.LOST,
        "SUSPENDING": Kind.LOST,
        "SUSPENDED": Kind.LOST,
        "FAILED": Kind.LOST,
    }.items():
        assert condition(None, {"state": {"state": state}}).kind is kind
    assert condition(ready, {"state": {"state": "ACTIVE"}}).kind is Kind.READY
    assert condition(ready, None, is_queued=True).kind is Kind.LOST


def test_what_the_workers_say_is_put_together():
    def together(*outcomes, workers=2):
        return overall([Report("", Outcome(x), "") for x in outcomes], workers)

    assert together("done", "done") is Outcome.DONE
    assert together("done", "running") is Outcome.RUNNING
    assert together("done") is Outcome.MISSING
    assert together(workers=0) is Outcome.MISSING
    # Who failed may have done so because of the other.
    assert together("failed", "missing") is Outcome.MISSING
    assert together("failed", "interrupted") is Outcome.INTERRUPTED
    assert together("failed", "stopped") is Outcome.FAILED


def test_it_waits_longer_and_longer_but_not_for_ever():
    pace = Pace(backoff=30.0, longest_backoff=1800.0)
    waits = [pace.backoff_after(failures) for failures in range(1, 10)]
    assert waits == [30, 60, 120, 240, 480, 960, 1800, 1800, 1800]
    assert pace.backoff_after(10_000) == 1800
