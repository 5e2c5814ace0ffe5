"""The rules of docs/architecture.md: imports between rooms, their size, how docstrings begin."""

import ast
import collections
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "effnetv2_jax"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
TREES = {path.relative_to(ROOT): ast.parse(path.read_text()) for path in FILES}

# What each room may import from this package, beside itself.
ROOMS = {
    "models": {"runtime"},
    "data": {"runtime", "preprocessing", "progressive"},
    "training": {"models", "runtime", "preprocessing", "progressive"},
    "weights": {"models", "training", "runtime", "preprocessing"},
    "predictions": {"models", "training", "weights", "data", "runtime", "preprocessing"},
    "inspection": {"training", "predictions", "data", "runtime"},
    "exporting": {
        *("models", "training", "weights", "data", "predictions", "runtime", "preprocessing"),
    },
    "benchmarks": {
        *("models", "training", "weights", "data", "predictions", "exporting", "runtime"),
        *("preprocessing", "progressive"),
    },
    "progressive": {"runtime"},
    "preprocessing": {"runtime"},
}
# Modules of runtime that the rooms below must not import: these two build runs out of the rooms.
ABOVE = {f"{PACKAGE}.runtime.{name}" for name in ("config", "run")}
# The libraries that a room may import at the top of a module.
LIBRARIES = {
    "models": {"jax", "flax", "numpy"},
    "training": {
        *("jax", "flax", "numpy", "optax", "orbax", "tensorstore", "clu", "absl", "etils"),
        "matplotlib",
    },
}
LARGEST_ROOM = 13


def room_of(path: pathlib.Path) -> str:
    """Returns the first part of a path below the package, without ``.py``."""
    return path.parts[1].removesuffix(".py")


def imports(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_is_below_it(room):
    allowed = ROOMS[room] | {room}
    for path, tree in TREES.items():
        if room_of(path) != room:
            continue
        ours = {name for name in imports(tree) if name.startswith(f"{PACKAGE}.")}
        wrong = {name for name in ours if name.split(".")[1] not in allowed}
        wrong |= {name for name in ours if any(name.startswith(x) for x in ABOVE)}
        assert not wrong - {f"{PACKAGE}.__version__"}, f"{path} imports {sorted(wrong)}"


@pytest.mark.parametrize("room", LIBRARIES)
def test_a_room_imports_only_its_libraries(room):
    for path, tree in TREES.items():
        if room_of(path) == room:
            at_the_top = ast.Module([x for x in tree.body if not hasattr(x, "body")], [])
            roots = {name.partition(".")[0] for name in imports(at_the_top)}
            others = roots - LIBRARIES[room] - {PACKAGE} - sys.stdlib_module_names
            assert not others, f"{path} imports {sorted(others)}"


def test_a_room_is_small_enough_to_know_all_its_files():
    rooms = collections.Counter(
        path.parent for path in TREES if path.name not in ("__init__.py", "__main__.py")
    )
    assert {room: count for room, count in rooms.items() if count > LARGEST_ROOM} == {}


def test_docstrings_begin_with_what_something_is_or_does():
    openers = {"Of", "What", "Whose", "Whether", "That", "Where"}
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    wrong = [
        f"{path}: {text.splitlines()[0]}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, documented) and (text := ast.get_docstring(node))
        if text.split()[0].rstrip(",.:") in openers
    ]
    assert not wrong
