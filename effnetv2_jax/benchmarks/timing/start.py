"""Time the start of training: ``python -m effnetv2_jax.benchmark start --config=FILE``.

Runs ``effnetv2_jax.train`` in processes of its own, each in a new workdir. Cold starts find no
compiled programs in the cache; warm starts find what the first cold run left there. The log says
when the first step came, counted from the start of the process, and how long training stood still
at the borders between stages. The first run of both kinds goes to its end, for the borders
(``--noborders``: none does). The others are ended after their first step. The data set has to be on
disk before.
"""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence

from absl import flags

from effnetv2_jax.benchmarks.markdown import table
from effnetv2_jax.benchmarks.timing.measure import Timing, environment, environment_text
from effnetv2_jax.runtime import extras
from effnetv2_jax.runtime.bars import spinner
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.workers import import_path, process_group

CONFIG = flags.DEFINE_string("config", "configs/digits.py", "Recipe of the training program.")
FIELDS = flags.DEFINE_multi_string(
    "field", [], "FIELD=VALUE, a field of the config to change, such as epochs=4. Repeatable."
)
COLD = flags.DEFINE_integer("cold", 1, "Number of cold starts.", lower_bound=1)
WARM = flags.DEFINE_integer("warm", 5, "Number of warm starts.", lower_bound=1)
BORDERS = flags.DEFINE_boolean("borders", True, "Let one run of each kind go to its end.")
JSON = flags.DEFINE_boolean("json", False, "Print JSON instead of tables.")

_FIRST_STEP = re.compile(r"first step after ([\d.]+) s(?:, (.+))?$")
_BORDER = re.compile(r"first step after a stall of (-?[\d.]+) s, (-?[\d.]+) steps$")


@dataclasses.dataclass(frozen=True)
class Start:
    """The start of one run, from its log.

    Attributes:
        seconds: The time from the start of the process to the first step.
        programs: The origin of the programs by then: ``warm``, ``cold``, or how many of how many
            were in the cache.
        borders: The stall before each later stage, in seconds and in steps of the stage before it.
    """

    seconds: float
    programs: str
    borders: tuple[tuple[float, float], ...] = ()


def main() -> None:
    extras.need("train", "the training program, which benchmark start runs,")
    command = [
        *(sys.executable, "-m", "effnetv2_jax.train", f"--config={CONFIG.value}"),
        *(f"--config.{field}" for field in FIELDS.value),
    ]
    with spinner("start:") as show:
        found = run_all(
            command, cold=COLD.value, warm=WARM.value, borders=BORDERS.value, on_run=show
        )
    if JSON.value:
        starts = {kind: [dataclasses.asdict(s) for s in some] for kind, some in found.items()}
        what = {"environment": environment(), "config": CONFIG.value, "fields": FIELDS.value}
        print(json.dumps(what | starts, indent=2))
        return
    print(" ".join([CONFIG.value, *FIELDS.value]))
    print(environment_text())
    print(f"\n{as_markdown(found)}")


def run_all(
    command: Sequence[str],
    *,
    cold: int,
    warm: int,
    borders: bool,
    on_run: Callable[[str], None] = lambda words: None,
) -> Mapping[str, Sequence[Start]]:
    """Starts a program several times with empty caches, then with what the first of these left.

    Args:
        command: The program and its arguments, without ``--workdir``.
        cold: The number of starts with an empty cache, at least 1.
        warm: The number of starts with a full cache, at least 1.
        borders: Lets the first run of each kind go to its end.
        on_run: Is told which run is next.

    Returns:
        The starts of each kind, ``cold`` and ``warm``.

    Raises:
        UsageError: See ``watch``.
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
        command: The program and its arguments.
        cache: The folder that stands in for the user's cache folder.
        to_the_end: Waits for the program's end. If False, it is killed after its first step.

    Raises:
        UsageError: If the program ended before its first step, or with an error. Its last line is
            in the message.
    """
    # The user's cache stays as it is.
    others = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
    variables = {name: value for name, value in os.environ.items() if name not in others}
    variables["XDG_CACHE_HOME"] = str(cache)
    variables["PYTHONPATH"] = import_path()
    with process_group(
        command,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
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


def as_markdown(found: Mapping[str, Sequence[Start]]) -> str:
    """Returns a table of starts and, if there are any, one of borders."""
    rows = [["start", "runs", "to the first step, median, s", "range, s", "programs"]]
    for kind, starts in found.items():
        timing = Timing(tuple(start.seconds for start in starts))
        programs = ", ".join(dict.fromkeys(start.programs for start in starts))
        range_text = f"{timing.low:.1f} to {timing.high:.1f}"
        rows.append([kind, str(len(starts)), f"{timing.median:.1f}", range_text, programs])
    tables = [table(rows)]
    with_borders = {kind: first.borders for kind, (first, *_) in found.items() if first.borders}
    if with_borders:
        stages = range(2, 2 + max(map(len, with_borders.values())))
        rows = [["border", *(f"before stage {i}, s" for i in stages), "in steps"]]
        for kind, borders in with_borders.items():
            seconds = [f"{seconds:.2f}" for seconds, _ in borders]
            rows.append([kind, *seconds, ", ".join(f"{steps:.1f}" for _, steps in borders)])
        tables.append(table(rows))
    return "\n\n".join(tables)
