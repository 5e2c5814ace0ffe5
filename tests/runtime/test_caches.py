"""The programs' cache of compiled programs: when it is on, in which folder, and its limit."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from effnetv2_jax.runtime import caches

HIT, MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"
SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The settings of a user's process, without the suite's own cache."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "effnetv2_jax" / "jax"
    for name, value in before.items():
        jax.config.update(name, value)


def test_it_is_in_the_users_cache(cache):
    caches.turn_on()
    folder = jax.config.jax_compilation_cache_dir
    assert os.path.dirname(folder) == str(cache)
    assert os.path.isdir(folder)


def test_what_the_user_has_said_stays(cache, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    caches.turn_on()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    caches.turn_on()
    assert jax.config.jax_compilation_cache_dir is None
    assert not cache.exists()


def test_a_folder_that_cannot_be_made_is_no_cache(cache):
    cache.parent.write_text("a file where the folder should be")
    caches.turn_on()
    assert jax.config.jax_compilation_cache_dir is None


def test_the_limit_is_jaxs_own_where_jax_can_keep_it(cache, monkeypatch):
    for installed, limit in ((None, -1), (object(), caches.LIMIT_BYTES)):
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=installed: found)
        caches.turn_on()
        assert jax.config.jax_compilation_cache_max_size == limit


def test_an_empty_program_goes_and_one_without_a_time_gets_its_own(cache):
    caches.turn_on()
    folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
    for name in ("empty-cache", "empty-atime"):
        (folder / name).touch()
    for name in ("old-cache", "new-cache", "new-atime"):
        (folder / name).write_bytes(b"12345678")
    os.utime(folder / "old-cache", ns=(0, 5))
    jax.config.update("jax_compilation_cache_dir", None)
    caches.turn_on()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        **dict.fromkeys(("old-cache", "new-cache", "new-atime"), b"12345678"),
        "old-atime": (5).to_bytes(8, "little"),
    }


# Run in a process of its own, because JAX reads its variables when it is imported.
PROGRAM = """
import jax, numpy as np
from effnetv2_jax.runtime import caches
caches.turn_on()
# However quickly it is compiled.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(jax.jit(lambda x: (x @ x).sum())(np.eye(8, dtype=np.float32)))
print(caches.COUNTS, jax.config.jax_compilation_cache_dir)
"""


def run_program(tmp_path, **variables):
    """Returns what it prints after the sum, and what it writes to standard error."""
    ours = {"JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment | {"XDG_CACHE_HOME": str(tmp_path / "user")} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    total, told = result.stdout.splitlines()
    assert total == "8.0"
    return told, result.stderr


def files_under(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_program_may_be_told_to_keep_nothing(tmp_path):
    told, _ = run_program(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert told == " None"
    assert list(tmp_path.iterdir()) == []


def test_a_program_may_be_told_where(tmp_path):
    there = str(tmp_path / "there")
    told, _ = run_program(tmp_path, JAX_COMPILATION_CACHE_DIR=there)
    assert told == f"cold {there}"
    assert {path.parent for path in files_under(tmp_path)} == {pathlib.Path(there)}


def test_a_damaged_file_is_a_warning_and_an_empty_one_is_replaced(tmp_path):
    told, _ = run_program(tmp_path)
    assert told.startswith("cold ")
    assert run_program(tmp_path)[0].startswith("warm ")
    files = files_under(tmp_path)
    for file in files:
        file.write_bytes(file.read_bytes()[:-100])
    told, warnings = run_program(tmp_path)
    assert told.startswith("cold ")
    assert "Error reading persistent compilation cache entry" in warnings
    for file in files:
        file.write_bytes(b"")
    told, warnings = run_program(tmp_path)
    assert told.startswith("cold ")
    assert "Error reading" not in warnings
    assert run_program(tmp_path)[0].startswith("warm ")


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([], ""),
        ([HIT], "warm"),
        ([MISS], "cold"),
        ([HIT, MISS, HIT], "2 of 3 programs from the cache"),
    ],
)
def test_counts(events, text):
    counts = caches.Counts()
    for event in ["another", *events]:
        counts.event(event)
    assert str(counts) == text
