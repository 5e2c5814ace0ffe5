"""Modules that are executed at the first question, once, whoever asks and however many."""

import builtins
import importlib
import subprocess
import sys
import threading

import pytest

from effnetv2_jax.postponed import postponed

CODE = {
    "parent/__init__.py": "from parent import late, now",
    "parent/now.py": "value = 1",
    "parent/late.py": """
import builtins, time
builtins.executions = getattr(builtins, "executions", 0) + 1
first = "first"
time.sleep(0.2)
from parent import asks_back
last = "last"
""",
    "parent/asks_back.py": """
import parent.late
early, later = hasattr(parent.late, "first"), hasattr(parent.late, "last")
""",
    "parent/fails.py": "raise OSError('not today')",
    "parent/own.py": "def __getattr__(name): return name.upper()",
    "parent/package/__init__.py": "__all__ = ['x']\nx, y = 1, 2",
    "parent/package/inner.py": "value = 3",
}


@pytest.fixture
def parent(tmp_path, monkeypatch):
    """A package whose parts are postponed, but for ``now`` and ``asks_back``."""
    for name, text in CODE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.executions", 0, raising=False)
    with postponed(r"parent\.(late|fails|own|package)"):
        yield importlib.import_module("parent")
    for name in [name for name in sys.modules if name.partition(".")[0] == "parent"]:
        del sys.modules[name]


def executions():
    return builtins.executions


def test_a_module_is_executed_when_it_is_asked_for_something(parent):
    assert parent.now.value == 1
    assert parent.late.__name__ == "parent.late"
    assert parent.late.__file__.endswith("late.py")
    assert executions() == 0
    assert parent.late.last == "last"
    assert executions() == 1
    assert not hasattr(parent.late, "nothing")
    # As of any module, then.
    assert not {"__getattr__", "__dir__"} & set(vars(parent.late))


def test_what_it_imports_sees_as_much_of_it_as_there_is(parent):
    assert parent.late.first == "first"
    assert (parent.asks_back.early, parent.asks_back.later) == (True, False)


def test_threads_that_ask_at_once_all_get_the_answer(parent):
    barrier, found = threading.Barrier(8), []

    def ask():
        barrier.wait()
        found.append(parent.late.last)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["last"] * 8
    assert executions() == 1


def test_what_goes_wrong_goes_wrong_again(parent):
    import parent.fails

    for _ in range(2):
        with pytest.raises(OSError, match="not today"):
            dir(parent.fails)


def test_a_module_may_answer_by_itself(parent):
    import parent.own

    assert [parent.own.a, parent.own.b] == ["A", "B"]


def test_names_are_there_for_a_list_and_for_a_star(parent):
    import parent.package

    assert {"x", "y"} <= set(dir(parent.package))
    names = {}
    exec("from parent.package import *", names)
    assert names["x"] == 1 and "y" not in names


def test_a_module_below_is_imported_without_it(parent):
    import parent.package.inner

    assert parent.package.inner.value == 3
    assert "x" not in vars(parent.package)
    assert parent.package.x == 1


def test_after_the_block_modules_are_executed_at_once():
    before = list(sys.meta_path)
    with postponed("this"):
        pass
    assert sys.meta_path == before


TENSORFLOW = """
import sys
import effnetv2_jax.data
import tensorflow as tf
parts = [name for name in sys.modules if name.startswith("tensorflow._api.v2.")]
waiting = [name for name in parts if "__getattr__" in vars(sys.modules[name])]
print(len(waiting) > 30, len([name for name in sys.modules if "tensorflow." in name]) < 1000)
print(tf.linalg.trace([[1.0, 2.0], [3.0, 4.0]]).numpy(), tf.compat.v1.Session.__name__)
from tensorflow.compat import v1
from tensorflow.io import gfile
print(v1.Session is tf.compat.v1.Session, gfile.exists("/"), tf.version.VERSION == tf.__version__)
"""


def test_tensorflow_is_whole_for_whoever_uses_the_rest_of_it():
    command = [sys.executable, "-c", TENSORFLOW]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["True True", "5.0 Session", "True True True"]
