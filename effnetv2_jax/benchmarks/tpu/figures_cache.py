"""Keeps the figures of compiled programs on disk, by content: compiling takes minutes."""

import hashlib
import json
import os
import pathlib
import tempfile
from typing import Any

from effnetv2_jax.benchmarks.tpu.figures import ProgramFigures

# Of the figures' meaning; what was written under another is not found any more.
_VERSION = 1

SHIPPED = pathlib.Path(__file__).parent.with_name("compiled_figures")
"""Figures that come with the package, of the programs behind docs/tpu_compile.md; read only."""


def key_of(program_text: str, *compiler: str) -> str:
    """The name under which figures are kept.

    Args:
        program_text: StableHLO.
        *compiler: everything else that the figures hang on: target, versions, options.
    """
    parts = (str(_VERSION), *compiler, program_text)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read(folder: pathlib.Path, key: str) -> ProgramFigures | None:
    """The figures under a key, from the folder or the package.

    Returns:
        None where there are none, or only a file that does not hold any.
    """
    for place in (folder, SHIPPED):
        try:
            return ProgramFigures.from_json(json.loads((place / f"{key}.json").read_text()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
    return None


def write(folder: pathlib.Path, key: str, figures: ProgramFigures) -> None:
    """Keeps figures, as ``write_json``."""
    write_json(folder / f"{key}.json", figures.as_json())


def write_json(path: pathlib.Path, value: Any) -> None:
    """Keeps a value; who reads at the same time, or writes, finds all of it or none.

    A folder that cannot be written is none: what was found is there, it only comes again.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            json.dump(value, file, indent=1)
        os.replace(file.name, path)
    except OSError:
        return
