"""Draws Figures 1, 3 and 5 from the tables: ``python -m effnetv2_jax.benchmark plots``.

Published points are hollow, ours filled. Accuracies are always the published ones. ``--tables`` is
a JSON file that ``benchmark tables`` has written; PNG and SVG go into ``--output``.
"""

import json
import pathlib

from absl import flags

from effnetv2_jax.benchmarks.tables.panels import FIGURES, panels_of
from effnetv2_jax.runtime.errors import UsageError, unknown_name

TABLES = flags.DEFINE_string("tables", "docs/reproduction.json", "JSON of benchmark tables.")
FIGURE = flags.DEFINE_list("figure", list(FIGURES), f"Of {', '.join(FIGURES)}.")
OUTPUT = flags.DEFINE_string("output", "docs/figures", "Folder; made where it is missing.")


def main() -> None:
    from effnetv2_jax.benchmarks.tables.drawing import draw

    for name in FIGURE.value:
        if name not in FIGURES:
            raise unknown_name("figure", name, FIGURES)
    tables = _read(pathlib.Path(TABLES.value))
    panels = {name: panels_of(name, tables) for name in FIGURE.value}
    folder = pathlib.Path(OUTPUT.value)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, found in panels.items():
            files = [folder / f"{name}{suffix}" for suffix in (".png", ".svg")]
            draw(FIGURES[name].title, found, files)
            print("\n".join(map(str, files)))
    except OSError as error:
        raise UsageError(f"--output {OUTPUT.value!r} cannot be written: {error}") from error


def _read(path: pathlib.Path) -> dict[str, dict]:
    try:
        found = json.loads(path.read_text())
        return {table["table"]: table for table in found["tables"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"--tables must be a JSON file written by benchmark tables, got {str(path)!r} ({error})"
        ) from error
