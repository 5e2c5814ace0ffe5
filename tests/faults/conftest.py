"""The undisturbed run, with which all tests here compare."""

import pytest

pytest.register_assert_rewrite("faults.scenarios")

from tests.faults import harness  # noqa: E402


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return harness.Program(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def reference(program):
    """Returns the workdir of an uninterrupted run, with all its checkpoints."""
    workdir = program.folder / "reference"
    life = program.run(workdir, "--config.checkpoint.keep_newest=100")
    assert life.exit_code == 0, life.stderr
    return workdir
