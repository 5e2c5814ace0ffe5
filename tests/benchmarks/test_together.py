"""``benchmark all``: what it runs, and what becomes of a benchmark that cannot run."""

import subprocess
import sys

import pytest

from effnetv2_jax.benchmark import BENCHMARKS
from effnetv2_jax.benchmarks import together


def test_every_section_is_a_benchmark_that_is_there():
    for arguments in together.sections("PYTHON").values():
        assert arguments[0] in BENCHMARKS


def test_what_a_benchmark_prints_stands_beneath_its_command():
    text = together._section("Nothing", ["--help"])
    assert text.startswith("## Nothing\n\n`python -m effnetv2_jax.benchmark --help`\n\n")
    assert "NAME is one of" in text


def test_one_that_cannot_run_leaves_its_reason():
    text = together._section("Peers", ["peers", "--peers=nobody"])
    assert "Not run, exit code 2: error: unknown peer 'nobody'" in text


def test_the_interpreter_of_another_environment_is_not_named():
    text = together._section("Peers", ["peers", "--torch_python=/secret/python"])
    assert "--torch_python=PYTHON" in text.partition("Not run")[0]
    assert "/secret" not in text.partition("Not run")[0]


@pytest.mark.parametrize("document", ["bench.txt", "nowhere/bench.md"])
def test_a_document_is_checked_before_anything_runs(document, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "effnetv2_jax.benchmark", "all", f"--document={document}"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2 and "--document must be a .md file" in ran.stderr
    assert not ran.stdout
