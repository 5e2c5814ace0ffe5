"""The names that docs/library.md promises to importers exist and are documented."""

import importlib
import inspect
import pathlib
import re

import pytest

import effnetv2_jax

LIBRARY = pathlib.Path(__file__).resolve().parents[1] / "docs" / "library.md"
ROWS = re.findall(r"`(effnetv2_jax[\w.]+)`: ((?:`\w+`(?:, )?)+)", LIBRARY.read_text())
NAMES = [(module, name) for module, names in ROWS for name in re.findall(r"\w+", names)]


def test_all_names_of_the_package_are_explained():
    assert len(NAMES) >= 20
    text = LIBRARY.read_text()
    for name in effnetv2_jax.__all__:
        assert name == "__version__" or f"`{name}(" in text, name


@pytest.mark.parametrize(
    ("module", "name"),
    NAMES + [("effnetv2_jax", x) for x in effnetv2_jax.__all__ if x != "__version__"],
)
def test_a_public_name_is_documented(module, name):
    value = getattr(importlib.import_module(module), name)
    text = inspect.getdoc(value)
    assert text and text.splitlines()[0].endswith(".")
    arguments = inspect.signature(value).parameters
    assert re.search(r"^(Args|Attributes):$|arguments are those of", text, re.M) or not arguments
    if not inspect.isclass(value):
        assert [x for x in arguments if not re.search(rf"\b{x}\b", text)] == []
