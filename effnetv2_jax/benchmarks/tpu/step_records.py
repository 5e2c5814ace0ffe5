"""Remembers what the compiler said of a whole step, by what was asked and the code behind it.

``figures_cache`` keeps figures by the content of the programs, which takes a minute of tracing to
know, and libtpu to trace for. A record is found in milliseconds, without libtpu. It holds as long
as the modules that the worker had imported read the same, comments and docstrings aside.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from effnetv2_jax.benchmarks.tpu.figures_cache import write_json

PACKAGE = __name__.partition(".")[0]

SHIPPED = pathlib.Path(__file__).parent.with_name("compiled_steps")
"""Records that come with the package, of the steps behind docs/reproduction.md; read only."""

# Imported with the rest, without a part in the step.
_ASIDE = tuple(
    f"{PACKAGE}.{name}"
    for name in (
        "bars",
        "errors",
        "files",
        "weights",
        "benchmarks.figures_cache",
        "benchmarks.step_records",
    )
)

Report = dict[str, Any]
"""What the worker reports; JSON knows it."""


def read(
    folder: pathlib.Path, request: Mapping[str, Any], *, of_any_code: bool = False
) -> Report | None:
    """The report of a request, from the folder or the package.

    Args:
        folder: of records.
        request: topology and arguments, for JSON.
        of_any_code: also what was compiled when the code read otherwise.

    Returns:
        None where there is none, where the code reads otherwise now, or where it was compiled by
        other versions than those that are installed; a version that is not installed says nothing.
    """
    if _other_flags():
        return None
    for place in (folder, SHIPPED):
        try:
            record = json.loads((place / _name(request)).read_text())
            report, modules = record["report"], record["modules"]
            of_this_code = of_any_code or modules == digests(modules)
            if of_this_code and _by_the_installed(report["versions"]):
                return report
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
    return None


def write(folder: pathlib.Path, request: Mapping[str, Any], report: Report) -> None:
    """Keeps a report; a folder that cannot be written is none.

    Args:
        folder: of records.
        request: as for ``read``.
        report: with ``modules``, the names of what the worker had imported.
    """
    if _other_flags():
        return
    record = {"request": request, "modules": digests(report["modules"]), "report": report}
    write_json(folder / _name(request), record)


def loaded_modules() -> list[str]:
    """Names of this package's modules that are imported, but for those without a part in a step."""
    names = (name for name in sys.modules if name.startswith(f"{PACKAGE}."))
    return sorted(name for name in names if not name.startswith(_ASIDE))


def digests(modules: Mapping[str, str] | list[str]) -> dict[str, str]:
    """Of each module, what its code reads like; the empty string for one that is gone."""
    return {name: _digest(name) for name in modules}


@functools.cache
def _digest(module: str) -> str:
    try:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None or module.partition(".")[0] != PACKAGE:
            return ""
        return digest_of(pathlib.Path(spec.origin).read_text(encoding="utf-8"))
    except (OSError, ImportError, SyntaxError, UnicodeDecodeError):
        return ""


def digest_of(source: str) -> str:
    """Of source code: the same for code that differs in comments, docstrings and line breaks."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # Docstrings, and those of attributes.
            node.body = [line for line in body if not _is_string(line)] or [ast.Pass()]  # type: ignore
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


def _is_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _name(request: Mapping[str, Any]) -> str:
    text = json.dumps(request, sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _by_the_installed(versions: Mapping[str, str]) -> bool:
    for name, version in versions.items():
        try:
            if metadata.version(name) != version:
                return False
        except metadata.PackageNotFoundError:
            continue
    return True


def _other_flags() -> bool:
    """Whether the compiler gets flags, with which it says other things."""
    return bool(os.environ.get("LIBTPU_INIT_ARGS"))
