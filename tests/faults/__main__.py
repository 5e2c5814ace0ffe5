"""Ends the real program in many ways and counts the losses: ``make faults``.

python -m tests.faults --kills=60 --seed=0 --jobs=2
"""

import argparse
import dataclasses
import pathlib
import queue
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.faults import harness, scenarios
from tests.faults.harness import Outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--kills",
        type=int,
        default=60,
        help="number of kills; four of them each in two processes, and with images that move",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="number of programs at the same time")
    parser.add_argument("--only", help="only try faults with this text in their name, and no kills")
    arguments = parser.parse_args()
    started = time.monotonic()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="faults-"))
    program = harness.Program(folder)
    print(f"in {folder}: an undisturbed run", flush=True)
    reference = folder / "reference"
    life = program.run(reference, "--config.checkpoint.keep_newest=100")
    if life.exit_code:
        print(life.stderr, file=sys.stderr)
        return 1
    elsewhere = {
        "two processes": scenarios.two_processes,
        "data moved before the next life": harness.Moving.make,
    }
    kills = {name: harness.draw_elsewhere(arguments.seed) for name in elsewhere}
    chains = harness.draw(max(arguments.kills - sum(map(len, kills.values())), 0), arguments.seed)
    if arguments.only:
        kills = {name: row for name, row in kills.items() if arguments.only in name}
        chains = []
    others = {
        name: scenario
        for name, scenario in scenarios.SCENARIOS.items()
        if (arguments.only or "") in name
    }

    def kill(number: int, row: list[harness.Kill]) -> Iterable[Outcome]:
        return harness.kill_in_a_row(program, folder / f"chain{number}", row, reference)

    def kill_elsewhere(name: str, row: list[harness.Kill]) -> Iterable[Outcome]:
        other, place = elsewhere[name](program), folder / name.replace(" ", "_")
        life = other.run(place / "reference")
        if life.exit_code:
            yield Outcome(name, [life.stdout[-2000:] + life.stderr[-2000:]])
            return
        for outcome in harness.kill_in_a_row(other, place, row, place / "reference"):
            yield dataclasses.replace(outcome, name=f"{outcome.name}, {name}")

    def do(name: str, scenario: scenarios.Scenario) -> Iterable[Outcome]:
        place = folder / name.replace(" ", "_").replace(":", "")
        yield _outcome(name, lambda: scenario(program, reference, place))

    work: list[tuple] = [(kill_elsewhere, name, row) for name, row in kills.items()]
    work += [(kill, number, row) for number, row in enumerate(chains)]
    work += [(do, name, scenario) for name, scenario in others.items()]
    num_kills = sum(map(len, [*chains, *kills.values()]))
    outcomes = _all(work, arguments.jobs, num_kills + len(others))
    lost = sum(bool(outcome.wrong) for outcome in outcomes)
    _print_table(outcomes)
    for outcome in outcomes:
        for wrong in outcome.wrong:
            print(f"lost: {outcome.name}: {wrong}")
    seconds = time.monotonic() - started
    print(
        f"{num_kills} kills and {len(others)} other faults, {lost} lost, in {seconds / 60:.1f} min"
    )
    if lost:
        print(f"its files are in {folder}")
        return 1
    scenarios.clean(folder)
    return 0


def _outcome(name: str, scenario: Callable[[], None]) -> Outcome:
    try:
        scenario()
    except pytest.skip.Exception as skipped:
        return Outcome(f"{name} (skipped: {skipped})")
    except Exception as error:
        return Outcome(name, [_told(error)])
    return Outcome(name)


def _told(error: Exception) -> str:
    """Returns the line that raised an error, and its message."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {frame.line!r}: {str(error)[-2000:]}"


def _all(work: list[tuple], jobs: int, total: int) -> list[Outcome]:
    """Does the work in several threads, and shows the progress."""
    done: queue.Queue[Outcome | Future] = queue.Queue()

    def one(function, *arguments) -> None:
        try:
            for outcome in function(*arguments):
                done.put(outcome)
        except Exception as error:
            done.put(Outcome("The harness itself", [_told(error)]))

    started = time.monotonic()
    outcomes: list[Outcome] = []
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with (
        ThreadPoolExecutor(jobs) as executor,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        bar = progress.add_task("faults", total=total)
        under_way = [executor.submit(one, *item) for item in work]
        for future in under_way:
            future.add_done_callback(done.put)
        while under_way:
            item = done.get()
            if isinstance(item, Future):
                under_way.remove(item)
                item.result()
                continue
            outcomes.append(item)
            lost = sum(bool(outcome.wrong) for outcome in outcomes)
            progress.update(bar, advance=1, description=f"faults, {lost} lost")
            if not console.is_terminal:
                state = "LOST" if item.wrong else "ok"
                minutes = (time.monotonic() - started) / 60
                print(
                    f"{minutes:4.1f} min {len(outcomes)}/{total} {item.name}: {state}", flush=True
                )
    return outcomes


def _print_table(outcomes: list[Outcome]) -> None:
    table = Table("fault", *("tried", "lost", "slowest stop, s", "steps made again"))
    for column in table.columns[1:]:
        column.justify = "right"
    names = [kind.name for kind in harness.KINDS] + list(scenarios.SCENARIOS)
    known = {outcome.name for outcome in outcomes}
    for name in [name for name in names if name in known] + sorted(known - set(names)):
        of_kind = [outcome for outcome in outcomes if outcome.name == name]
        stops = [x.stop_seconds for x in of_kind if x.stop_seconds is not None]
        table.add_row(
            name,
            str(len(of_kind)),
            str(sum(bool(outcome.wrong) for outcome in of_kind)),
            f"{max(stops):.1f}" if stops else "",
            str(sum(outcome.made_again for outcome in of_kind)) if name in _KINDS else "",
        )
    Console(width=None if sys.stdout.isatty() else 100).print(table)


_KINDS = {kind.name for kind in harness.KINDS}

if __name__ == "__main__":
    sys.exit(main())
