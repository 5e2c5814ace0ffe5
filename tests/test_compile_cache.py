"""The programs' cache of compiled programs: when it is on, where, and how large."""

import os

import jax
import pytest

from effnetv2_jax import compile_cache

HIT, MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"
SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """As in a user's process: without the suite's own cache."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "effnetv2_jax" / "jax"
    for name, value in before.items():
        jax.config.update(name, value)


def test_it_is_in_the_users_cache(cache):
    compile_cache.turn_on()
    folder = jax.config.jax_compilation_cache_dir
    assert os.path.dirname(folder) == str(cache)
    assert os.path.isdir(folder)


def test_what_the_user_has_said_stays(cache, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    compile_cache.turn_on()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    compile_cache.turn_on()
    assert jax.config.jax_compilation_cache_dir is None
    assert not cache.exists()


def test_a_folder_that_cannot_be_made_is_no_cache(cache):
    cache.parent.write_text("a file where the folder should be")
    compile_cache.turn_on()
    assert jax.config.jax_compilation_cache_dir is None


def test_what_was_longest_not_read_is_deleted_first(tmp_path):
    for time, name in enumerate("bac"):
        path = tmp_path / f"{name}-cache"
        path.write_bytes(bytes(10))
        os.utime(path, (time, time))
    compile_cache._shrink(tmp_path, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-cache", "c-cache"]


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
    counts = compile_cache.Counts()
    for event in ["another", *events]:
        counts.event(event)
    assert str(counts) == text
