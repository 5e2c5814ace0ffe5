"""Keeps the figures of compiled programs on disk, by content: compiling takes minutes."""

import hashlib
import json
import os
import pathlib
import tempfile

from effnetv2_jax.benchmarks.program_figures import ProgramFigures

# Of the figures' meaning; what was written under another is not found any more.
_VERSION = 1

SHIPPED = pathlib.Path(__file__).with_name("compiled_figures")
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
    """Keeps figures; who reads at the same time finds all of them or none.

    A folder that cannot be written is none: the figures are there, they only come again.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".tmp", delete=False) as file:
            json.dump(figures.as_json(), file, indent=1)
        os.replace(file.name, folder / f"{key}.json")
    except OSError:
        return
