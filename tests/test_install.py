"""The wheel in a fresh environment without extras, and the code that README shows to importers."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from effnetv2_jax.runtime.extras import EXTRAS

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> pathlib.Path:
    """The interpreter of an environment that holds the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("install")
    # Isolated: what PYTHONPATH has would count as installed.
    pip = ["-I", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", f"--wheel-dir={folder}", str(ROOT)]
    subprocess.run([sys.executable, *pip, *wheel], check=True)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    (file,) = folder.glob("*.whl")
    subprocess.run([python, *pip, "install", file], check=True)
    return python


def run(python: pathlib.Path, *arguments: str, cwd: pathlib.Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [python, *arguments],
        cwd=cwd,
        env={"JAX_PLATFORMS": "cpu", "HOME": str(cwd)},
        capture_output=True,
        text=True,
    )


def test_nothing_heavy_is_installed(python, tmp_path):
    # Flax itself depends on Orbax and rich.
    names = [name for name in EXTRAS["train"] if name not in ("etils", "orbax.checkpoint", "rich")]
    code = (
        "import importlib.util, json\n"
        f"print(json.dumps([n for n in {names!r} if importlib.util.find_spec(n)]))"
    )
    assert json.loads(run(python, "-c", code, cwd=tmp_path).stdout) == []


def test_readme_has_blocks_of_python():
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_of_readme_runs(python, block, tmp_path):
    result = run(python, "-c", block, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("program", ["train", "evaluate", "predict", "export"])
def test_a_program_without_its_extra_says_which_one(python, program, tmp_path):
    result = run(python, "-m", f"effnetv2_jax.{program}", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "pip install 'effnetv2_jax[train]'" in result.stderr


def test_the_data_room_without_its_extra_says_which_one(python, tmp_path):
    result = run(python, "-c", "import effnetv2_jax.data", cwd=tmp_path)
    assert "effnetv2_jax.data needs" in result.stderr.splitlines()[-1]
