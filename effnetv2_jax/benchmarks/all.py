"""Run what `make bench` runs: ``python -m effnetv2_jax.benchmark all``.

Runs other benchmarks one after the other, each in a process of its own, and prints what they print:
step and inference beside Keras and timm, the input pipeline, the start and the borders between
stages. ``--document=FILE.md`` also writes all of it to a file. If a benchmark cannot run here, its
section says why.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import flags

from effnetv2_jax.benchmarks.markdown import document_path
from effnetv2_jax.benchmarks.timing.measure import environment_text
from effnetv2_jax.runtime.bars import Counter
from effnetv2_jax.runtime.files import write_atomically

TORCH_PYTHON = flags.DEFINE_string(
    "torch_python", None, "Interpreter that has torch and timm. Default: this one."
)
DOCUMENT = flags.DEFINE_string("document", None, "Markdown file that gets the output as well.")

_PROGRAM = "effnetv2_jax.benchmark"

_PREFACE = """# Beside what people would use instead

Written by `make bench`. Only ratios within one run count: machines differ, and the same one from \
hour to hour. Where a ratio falls short, docs/performance.md has the reason."""


def sections(torch_python: str | None) -> dict[str, list[str]]:
    """Returns the arguments of the benchmark beneath each heading."""
    torch = [f"--torch_python={torch_python}"] if torch_python else []
    larger = ["--model=efficientnetv2-s", "--image_size=192", "--batch_size=8"]
    return {
        "Step and inference: V2-B0, 128 px, batch 16": ["peers", *torch],
        "Step and inference: V2-S, 192 px, batch 8": ["peers", *larger, *torch],
        "Input pipeline": ["input"],
        "Start, and the borders between stages": ["start"],
    }


def main() -> None:
    document = document_path(DOCUMENT.value)
    plan = sections(TORCH_PYTHON.value)
    texts = [f"On {environment_text()}; {time.strftime('%Y-%m-%d', time.gmtime())}."]
    print(texts[0])
    with Counter() as bar:
        bar.start(len(plan))
        for heading, arguments in plan.items():
            bar.next(heading)
            texts.append(_section(heading, arguments))
            print(f"\n{texts[-1]}", flush=True)
    if document is not None:
        write_atomically(document, "\n\n".join([_PREFACE, *texts]) + "\n")


def _section(heading: str, arguments: Sequence[str]) -> str:
    # The path of another interpreter is private.
    shown = ["--torch_python=PYTHON" if "torch_python" in word else word for word in arguments]
    command = f"`python -m {shlex.join([_PROGRAM, *shown])}`"
    ran = subprocess.run(
        [sys.executable, "-m", _PROGRAM, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    text = ran.stdout.strip()
    if ran.returncode:
        *_, last = ran.stderr.strip().splitlines() or ["it printed no error"]
        text = f"Not run, exit code {ran.returncode}: {last}"
    return f"## {heading}\n\n{command}\n\n{text}"
