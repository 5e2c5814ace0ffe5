"""The benchmark of starts, with a program that says what a training program says."""

import json
import subprocess
import sys

import pytest

from effnetv2_jax.benchmarks.timing import start as start_benchmark
from effnetv2_jax.benchmarks.timing.start import Start, as_markdown, run_all, watch
from effnetv2_jax.runtime.errors import UsageError

# It is warm from its second start with a cache on, and stays where its third argument says so.
PROGRAM = """
import os, pathlib, sys, time
def say(text):
    print("I1125 23:16:13.584931 1400724 progress.py:35]", text, file=sys.stderr, flush=True)
cache = pathlib.Path(os.environ["XDG_CACHE_HOME"])
say(f"first step after 1.5 s, {'warm' if cache.exists() else 'cold'}")
cache.mkdir(exist_ok=True)
say("first step after a stall of 0.25 s, 1.5 steps")
say("first step after a stall of -0.01 s, -0.1 steps")
if "stays" in sys.argv:
    time.sleep(100)
"""


def command(program=PROGRAM, *arguments):
    return [sys.executable, "-c", program, *arguments]


def test_a_run_to_its_end_has_borders(tmp_path):
    found = watch(command(), tmp_path / "cache", to_the_end=True)
    assert found == Start(1.5, "cold", ((0.25, 1.5), (-0.01, -0.1)))


def test_a_run_that_has_started_is_ended(tmp_path):
    found = watch(command(PROGRAM, "stays"), tmp_path / "cache", to_the_end=False)
    assert found == Start(1.5, "cold")


def test_the_users_cache_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    program = "import os, sys; sys.exit(any(name.startswith('JAX_') and 'CACHE_DIR' in name"
    program += " or 'ENABLE_COMPILATION' in name for name in os.environ))"
    with pytest.raises(UsageError, match="ended with exit code 0"):
        watch(command(program), tmp_path, to_the_end=True)


def test_a_program_that_fails_is_quoted(tmp_path):
    program = "import sys; print('error: no such recipe', file=sys.stderr); sys.exit(2)"
    with pytest.raises(UsageError, match="exit code 2: error: no such recipe"):
        watch(command(program), tmp_path, to_the_end=False)
    late = PROGRAM + "\nprint('the disk is full', file=sys.stderr); sys.exit(1)"
    with pytest.raises(UsageError, match="exit code 1: the disk is full"):
        watch(command(late), tmp_path, to_the_end=True)


def test_cold_starts_have_empty_caches_and_warm_ones_what_the_first_left(tmp_path):
    found = run_all(command(), cold=2, warm=3, borders=True)
    assert [start.programs for start in found["cold"]] == ["cold"] * 2
    assert [start.programs for start in found["warm"]] == ["warm"] * 3
    # Of each kind the first goes to its end.
    assert [len(start.borders) for start in found["cold"]] == [2, 0]
    assert [len(start.borders) for start in found["warm"]] == [2, 0, 0]


def test_every_start_has_a_workdir_of_its_own(monkeypatch):
    asked = []

    def watched(command, cache, *, to_the_end):
        asked.append((command[0], command[-1], to_the_end))
        return Start(1.0, "")

    monkeypatch.setattr(start_benchmark, "watch", watched)
    told = []
    run_all(["train"], cold=2, warm=5, borders=False, on_run=told.append)
    programs, workdirs, ends = zip(*asked, strict=True)
    assert set(programs) == {"train"}
    assert len(set(workdirs)) == 7
    assert all(workdir.startswith("--workdir=") for workdir in workdirs)
    assert not any(ends)
    assert told[:3] == ["cold, 1 of 2", "cold, 2 of 2", "warm, 1 of 5"]


def test_medians_ranges_and_borders_are_tables():
    found = {
        "cold": [Start(70.0, "cold", ((0.5, 2.0), (0.25, 1.04)))],
        "warm": [Start(9.0, "warm"), Start(8.0, "warm"), Start(8.5, "3 of 4 programs")],
    }
    lines = [" ".join(line.split()) for line in as_markdown(found).splitlines()]
    assert "| cold | 1 | 70.0 | 70.0 to 70.0 | cold |" in lines
    assert "| warm | 3 | 8.5 | 8.0 to 9.0 | warm, 3 of 4 programs |" in lines
    assert "| border | before stage 2, s | before stage 3, s | in steps |" in lines
    assert lines[-1] == "| cold | 0.50 | 0.25 | 2.0, 1.0 |"
    assert "border" not in as_markdown({"warm": found["warm"]})


# The command as a user gives it, with a program that takes no time, or without a library.
BENCHMARK = """
import runpy, sys
from effnetv2_jax.benchmarks.timing import start
from effnetv2_jax.benchmarks.timing.start import Start
def watched(command, cache, *, to_the_end):
    assert "--config.epochs=4" in command and "--config.seed=1" in command, command
    return Start(3.0, "warm")
start.watch = watched
from effnetv2_jax.runtime import extras
extras._is_installed = lambda name: name != missing
runpy.run_module("effnetv2_jax.benchmark", run_name="__main__", alter_sys=True)
"""


def benchmark(*arguments, missing=None):
    return subprocess.run(
        [sys.executable, "-c", f"missing = {missing!r}\n{BENCHMARK}", "start", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_benchmark_prints_json():
    result = benchmark("--field=epochs=4", "--field=seed=1", "--warm=2", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["config"] == "configs/digits.py"
    assert found["fields"] == ["epochs=4", "seed=1"]
    assert found["warm"] == [{"seconds": 3.0, "programs": "warm", "borders": []}] * 2
    assert "device" in found["environment"]


def test_a_library_that_is_missing_is_one_sentence():
    result = benchmark(missing="tensorflow")
    assert result.returncode == 2
    assert result.stderr == (
        "error: the training program, which benchmark start runs, needs tensorflow: install them "
        "with pip install 'effnetv2_jax[train]'\n"
    )
