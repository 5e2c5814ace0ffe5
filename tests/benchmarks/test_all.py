"""``benchmark all``: what it runs, and what becomes of a benchmark that cannot run."""

from effnetv2_jax.benchmark import BENCHMARKS
from effnetv2_jax.benchmarks import all as benchmark_all
from tests.benchmarks.commands import refusals


def test_every_section_is_a_benchmark_that_is_there():
    for arguments in benchmark_all.sections("PYTHON").values():
        assert arguments[0] in BENCHMARKS


def test_what_a_benchmark_prints_stands_beneath_its_command():
    text = benchmark_all._section("Nothing", ["--help"])
    assert text.startswith("## Nothing\n\n`python -m effnetv2_jax.benchmark --help`\n\n")
    assert "NAME is one of" in text


def test_one_that_cannot_run_leaves_its_reason():
    text = benchmark_all._section("Peers", ["peers", "--peers=nobody"])
    assert "Not run, exit code 2: error: unknown peer 'nobody'" in text


def test_the_interpreter_of_another_environment_is_not_named():
    text = benchmark_all._section("Peers", ["peers", "--torch_python=/secret/python"])
    assert "--torch_python=PYTHON" in text.partition("Not run")[0]
    assert "/secret" not in text.partition("Not run")[0]


def test_a_document_is_checked_before_anything_runs():
    values = [{"document": document} for document in ("bench.txt", "nowhere/bench.md")]
    for sentence in refusals("all", values):
        assert "--document must be a .md file in a folder that exists" in sentence
