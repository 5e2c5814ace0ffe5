"""Every call of gcloud that ``up`` makes, made to fail: a job that goes on, and nothing left."""

import concurrent.futures

import pytest

from tests.launch.stand_in.launcher import make_launcher


def run_with_a_failure(folder, call, when, *flags):
    """Runs ``up`` with one call of gcloud failing; checks what is left of it.

    Returns the number of calls that there were.
    """
    launcher = make_launcher(folder)
    try:
        launcher.cloud.fail_at(call, when)
        job = {"type": "v4-8", "job": ["--steps=2"]}
        arguments, keywords = launcher.up(*flags, **job)
        code, _, err = launcher.run(*arguments, **keywords)
        calls = len(launcher.cloud.calls())
        context = (call, when, flags, err)
        if code == 0:
            assert launcher.results() == ["2"], context
            kept = [] if "--delete_when_done" in flags else ["pod"]
            kept *= 2 if "--queued" in flags else 1  # a queued resource of the same name
            assert launcher.cloud.everything() == kept, context
        else:
            assert "error: " in err, context
        if launcher.cloud.everything():
            # What is left can be removed by the printed command, …
            assert launcher.clean_up(err), context
            assert launcher.cloud.everything() == [], context
        if code:
            # … and after that, or without, the same command brings the job to its end.
            arguments, keywords = launcher.up("--delete_when_done", **job)
            code, _, err = launcher.run(*arguments, **keywords)
            assert (code, launcher.results()) == (0, ["2"]), context
            assert launcher.cloud.everything() == [], context
        return calls
    finally:
        launcher.cloud.close()


def fail_each(tmp_path, whens, flags):
    """Makes each call of ``up`` fail, in turn, in as many runs as there are calls."""
    calls = run_with_a_failure(tmp_path / "none", -1, "before", *flags)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(run_with_a_failure, tmp_path / f"{call}{when}", call, when, *flags)
            for call in range(calls)
            for when in whens(call)
        ]
        for run in runs:
            run.result()
    assert calls >= 10


def test_whichever_call_fails_nothing_is_left(tmp_path):
    """Every other before it has done anything, the rest when all is done."""
    flags = ("--keep_alive", "--delete_when_done")
    fail_each(tmp_path, lambda call: [("before", "after")[call % 2]], flags)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--delete_when_done",),
        ("--keep_alive", "--delete_when_done"),
        ("--keep_alive", "--delete_when_done", "--queued"),
        ("--queued",),
    ],
)
def test_whichever_call_fails_in_either_way_nothing_is_left(tmp_path, flags):
    fail_each(tmp_path, lambda call: ["before", "after"], flags)
