"""A missing extra is named in one sentence; tests/test_install.py tries it without the extras."""

import pytest

from effnetv2_jax.runtime import extras
from effnetv2_jax.runtime.errors import UsageError


def test_an_extra_that_is_installed_is_no_error():
    extras.need("train", "this test")


def test_a_missing_module_names_the_extra(monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "train", ("numpy", "no_such_module", "no_such.submodule"))
    with pytest.raises(
        ImportError, match=r"^this test needs no_such_module, no_such.submodule: "
    ) as error:
        extras.need("train", "this test")
    assert "pip install 'effnetv2_jax[train]'" in str(error.value)
    assert isinstance(error.value, UsageError)


def test_a_program_ends_with_the_sentence(monkeypatch, capsys):
    monkeypatch.setitem(extras.EXTRAS, "train", ("no_such_module",))
    with pytest.raises(SystemExit) as ended:
        extras.need_for_program("train")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: this program needs no_such_module")
