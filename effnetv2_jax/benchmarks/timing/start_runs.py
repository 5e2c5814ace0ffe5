"""Runs a training program again and again, and reads in its log how it started."""

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from effnetv2_jax.benchmarks.markdown import align
from effnetv2_jax.benchmarks.timing.measure import Timing
from effnetv2_jax.runtime.errors import UsageError

PACKAGE_ROOT = pathlib.Path(__file__).resolve().parents[3]

_FIRST_STEP = re.compile(r"first step after ([\d.]+) s(?:, (.+))?$")
_BORDER = re.compile(r"first step after a stall of (-?[\d.]+) s, (-?[\d.]+) steps$")


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run said.

    Attributes:
        seconds: from the start of its process to its first step.
        programs: whence they came by then: ``warm``, ``cold``, or how many of how many.
        borders: the stall before each later stage, in seconds and in steps of the stage before it.
    """

    seconds: float
    programs: str
    borders: tuple[tuple[float, float], ...] = ()


Starts = Mapping[str, Sequence[Start]]
"""Those of each kind, ``cold`` and ``warm``; at least one."""


def run_all(
    command: Sequence[str],
    *,
    cold: int,
    warm: int,
    borders: bool,
    on_run: Callable[[str], None] = lambda words: None,
) -> Starts:
    """Starts a program some times with empty caches, then with what the first of these left.

    Args:
        command: of the program, without ``--workdir``.
        cold: so many starts, at least 1.
        warm: likewise.
        borders: the first run of each kind goes to its end.
        on_run: is told which is next.

    Raises:
        UsageError: as ``watch``.
    """
    found: dict[str, list[Start]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for kind, count in (("cold", cold), ("warm", warm)):
            for number in range(count):
                on_run(f"{kind}, {number + 1} of {count}")
                cache = root / f"cache{number if kind == 'cold' else 0}"
                start = watch(
                    [*command, f"--workdir={root / f'{kind}{number}'}"],
                    cache,
                    to_the_end=borders and number == 0,
                )
                found[kind].append(start)
    return found


def watch(command: Sequence[str], cache: pathlib.Path, *, to_the_end: bool) -> Start:
    """Runs a program and reads its log.

    Args:
        command: of the program.
        cache: folder for what it keeps, in place of the user's.
        to_the_end: it is ended after its first step otherwise.

    Raises:
        UsageError: where it ended before its first step, or badly, with what it said last.
    """
    with _running(command, cache) as process:
        assert process.stderr
        start, borders, last = None, [], ""
        for line in map(str.strip, process.stderr):
            last = line or last
            if match := _BORDER.search(line):
                borders.append((float(match[1]), float(match[2])))
            elif match := _FIRST_STEP.search(line):
                start = Start(float(match[1]), match[2] or "")
                if not to_the_end:
                    return start
        if process.wait() or start is None:
            code = process.returncode
            raise UsageError(f"the training program ended with exit code {code}: {last}")
    return dataclasses.replace(start, borders=tuple(borders))


@contextlib.contextmanager
def _running(command: Sequence[str], cache: pathlib.Path) -> Iterator[subprocess.Popen]:
    """The program in a process group of its own, which is gone after the block."""
    # Whatever the user's cache is, this is another.
    others = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
    variables = {name: value for name, value in os.environ.items() if name not in others}
    variables["XDG_CACHE_HOME"] = str(cache)
    variables["PYTHONPATH"] = os.pathsep.join([str(PACKAGE_ROOT), *filter(None, sys.path)])
    process = subprocess.Popen(
        command,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def as_json(found: Starts) -> dict[str, Any]:
    """What was found, by kind."""
    return {kind: [dataclasses.asdict(start) for start in starts] for kind, starts in found.items()}


def as_markdown(found: Starts) -> str:
    """A table of starts and, where there are any, one of borders."""
    head = ["start", "runs", "to the first step, median, s", "range, s", "programs"]
    tables = [align([head, *(_start_row(kind, starts) for kind, starts in found.items())])]
    with_borders = {kind: first.borders for kind, (first, *_) in found.items() if first.borders}
    if with_borders:
        stages = range(2, 2 + max(map(len, with_borders.values())))
        head = ["border", *(f"before stage {i}, s" for i in stages), "in steps"]
        rows = [_border_row(kind, borders) for kind, borders in with_borders.items()]
        tables.append(align([head, *rows]))
    return "\n\n".join(tables)


def _start_row(kind: str, starts: Sequence[Start]) -> list[str]:
    timing = Timing(tuple(start.seconds for start in starts))
    return [
        *(kind, str(len(starts)), f"{timing.median:.1f}", f"{timing.low:.1f} to {timing.high:.1f}"),
        ", ".join(dict.fromkeys(start.programs for start in starts)),
    ]


def _border_row(kind: str, borders: Sequence[tuple[float, float]]) -> list[str]:
    seconds = [f"{seconds:.2f}" for seconds, _ in borders]
    return [kind, *seconds, ", ".join(f"{steps:.1f}" for _, steps in borders)]
