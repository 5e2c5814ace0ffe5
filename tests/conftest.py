"""Eight simulated devices, a compilation cache, and what several tests share."""

import os
import pathlib

import pytest

from tests import xla_flags

TESTS = pathlib.Path(__file__).resolve().parent

# Before JAX starts: the mesh tests need devices, and compiling is most of the suite's time.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = xla_flags.for_devices(8)
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(TESTS.parent / ".cache" / "jax"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")

# Minutes each: first, so that at the end no worker has one alone while the other waits.
LONGEST = (
    "faults/test_faults.py",
    "programs/test_train_and_evaluate.py",
    "training/test_many_devices.py",
    "training/test_step.py",
    "programs/test_several_processes.py",
)


def pytest_collection_modifyitems(items):
    places = {TESTS / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture
def as_if_on(monkeypatch):
    """Of a platform's name: what is traced from then on takes that platform's way, on this one."""
    import jax  # after the environment above

    def choose_for(platform):
        def chosen(*arguments, default, **by_platform):
            return by_platform.get(platform, default)(*arguments)

        monkeypatch.setattr(jax.lax, "platform_dependent", chosen)

    return choose_for
