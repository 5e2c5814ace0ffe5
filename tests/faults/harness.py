"""Starts the real program, ends it at chosen moments, and checks the files that it leaves."""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from PIL import Image

from effnetv2_jax.training.survival.checkpoint import Checkpoints, find_damage
from tests import xla_flags

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# A network that compiles in seconds, and four short stages that use everything random. They have
# two image sizes, because each size is compiled. The number of steps between checkpoints is odd, so
# that every second one is between two lines of the log.
RECIPE = (
    "--config=configs/digits.py",
    "--config.model.name=efficientnetv2-tiny",
    "--config.schedule.image_size=(16,17)",
    "--config.batch_size=96",
    "--config.epochs=4",
    "--config.eval_image_size=17",
    "--config.log_every_steps=2",
    "--config.checkpoint.every_steps=5",
)
STEPS = 4 * 1437 // 96
BORDERS = tuple(STEPS * i // 4 for i in range(1, 5))
STOP_SECONDS = 20.0
"""The longest time between SIGTERM and the end of the program."""

_POLL_SECONDS = 0.002
_PATIENCE = 300.0
# Orbax's handlers are not thread-safe.
_READING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Program:
    """The program with its recipe.

    Attributes:
        folder: The folder of the data set, which all runs share.
        devices: The number of simulated devices of each process.
        processes: The number of processes; more than one are a pod.
        flags: The flags of the recipe.
    """

    folder: pathlib.Path
    devices: int = 1
    processes: int = 1
    flags: tuple[str, ...] = RECIPE

    def for_next_life(self) -> "Program":
        """Returns the program to start next."""
        return self

    def command(self, workdir: pathlib.Path, *flags: str) -> list[str]:
        program = ["effnetv2_jax.train"]
        if self.processes > 1:
            program = [
                "launch.local_pod",
                f"--processes={self.processes}",
                f"--devices_per_process={self.devices}",
                "--",
            ]
        return [sys.executable, "-m", *program, *self.flags, *flags, f"--workdir={workdir}"]

    def environment(self) -> dict[str, str]:
        cache = ROOT / ".cache" / "faults"
        return os.environ | {
            "TFDS_DATA_DIR": str(self.folder / "tfds"),
            # Later lives find the programs that one has compiled.
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla_flags.for_devices(self.devices),
        }

    @contextlib.contextmanager
    def started(self, workdir: pathlib.Path, *flags: str) -> Iterator["Life"]:
        """Runs the program in the background, and kills it when the block ends."""
        life = Life(self.command(workdir, *flags), self.environment(), workdir, self.folder)
        try:
            yield life
        finally:
            life.kill()

    def run(self, workdir: pathlib.Path, *flags: str) -> "Life":
        """Runs the program from its start to its end."""
        with self.started(workdir, *flags) as life:
            life.process.wait(_PATIENCE)
        return life


@dataclasses.dataclass(frozen=True)
class Moving(Program):
    """A program whose images lie elsewhere in every life.

    Attributes:
        images: The folder of the images now.
    """

    images: pathlib.Path = pathlib.Path()

    @classmethod
    def make(cls, program: Program) -> "Moving":
        """Returns the program with as many images as the digits have, in a folder."""
        images = pathlib.Path(tempfile.mkdtemp(prefix="images-", dir=program.folder)) / "0"
        rng = np.random.default_rng(0)
        for split, size in (("train", 1437), ("val", 60)):
            for number in range(size):
                folder = images / split / str(number % 10)
                folder.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
        flags = (*program.flags, "--config.data.eval_split=val")
        return cls(program.folder, program.devices, program.processes, flags, images)

    def for_next_life(self) -> "Moving":
        place = self.images.with_name(str(int(self.images.name) + 1))
        return dataclasses.replace(self, images=self.images.rename(place))

    def command(self, workdir: pathlib.Path, *flags: str) -> list[str]:
        return super().command(workdir, f"--config.data.name=folder:{self.images}", *flags)


class Life:
    """A process of the program, from its start to its end.

    Args:
        command: The command that starts it.
        environment: Its environment variables.
        workdir: The workdir to which it writes.
        folder: The folder for its output.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        workdir: pathlib.Path,
        folder: pathlib.Path,
    ):
        self.workdir = workdir
        place = tempfile.mkdtemp(prefix=f"{workdir.parent.name}-{workdir.name}-", dir=folder)
        self._outputs = [pathlib.Path(place) / name for name in ("stdout", "stderr")]
        # By the clock of files and metrics.
        self.started = time.time()
        with contextlib.ExitStack() as stack:
            # Files, because a pipe that nobody reads would stop it.
            out, err = (stack.enter_context(path.open("wb")) for path in self._outputs)
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=err
            )

    @property
    def stdout(self) -> str:
        return self._outputs[0].read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._outputs[1].read_text(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """The exit code, −N if signal N killed it, None while it runs."""
        return self.process.poll()

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Waits until a condition is true; returns False if the program ended before."""
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if self.exit_code is not None:
                return condition()
            assert time.monotonic() < deadline, self.stderr
            time.sleep(_POLL_SECONDS)
        return True

    def step(self) -> int:
        """Returns the last step that this process has logged, or 0."""
        return max(
            (row["step"] for row in _rows(self.workdir) if row["time"] >= self.started), default=0
        )

    def saving(self) -> bool:
        """Tells whether a checkpoint is being written."""
        temporary = (self.workdir / "checkpoints").glob("*tmp*")
        with contextlib.suppress(FileNotFoundError):
            # A folder that an earlier process left behind is older.
            return any(path.stat().st_mtime >= self.started for path in temporary)
        return False

    def status(self) -> dict[str, object]:
        """Returns ``status.json``, or an empty dict if this process has not written it."""
        with contextlib.suppress(FileNotFoundError):
            status = json.loads((self.workdir / "status.json").read_text())
            return status if status["time"] >= self.started else {}
        return {}

    def send(self, number: int) -> None:
        if number == signal.SIGKILL:
            self.kill()
        else:
            self.process.send_signal(number)

    def stand_still(self) -> None:
        """Stops it until SIGCONT; nothing in its workdir changes meanwhile."""
        self.send(signal.SIGSTOP)
        # Waits until all its threads have stopped.
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def kill(self) -> None:
        """Kills it and all processes that it started: a pod's processes would outlive it."""
        for pid in _children(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def seconds_to_end(self, timeout: float = 60.0) -> float:
        """Waits for the end; a program that does not end is killed."""
        started = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)
        self.kill()
        return time.monotonic() - started


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [int(word) for word in text.split()]
    return []


def _rows(workdir: pathlib.Path) -> list[dict]:
    """Returns the complete rows of ``metrics.jsonl``."""
    with contextlib.suppress(FileNotFoundError):
        lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
    return []


def metrics(workdir: pathlib.Path) -> list[dict]:
    """Returns the rows of ``metrics.jsonl`` without times, which are equal for equal runs."""
    timed = ("time", "train/images_per_second")
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: x for name, x in row.items() if name not in timed} for row in rows]


def steps(workdir: pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints on the disk, in order."""
    folders = (workdir / "checkpoints").glob("*")
    return sorted(int(path.name) for path in folders if path.name.isdecimal())


def arrays(workdir: pathlib.Path) -> tuple[int | None, dict[str, np.ndarray]]:
    """Returns the step of the newest checkpoint, and its arrays by path."""
    with _READING:
        checkpoints = Checkpoints(workdir, read_only=True)
        step = checkpoints.latest_step()
        checkpoints.close()
        if step is None:
            return None, {}
        # As NumPy arrays, whatever number of devices wrote them.
        folder = epath.Path(workdir / "checkpoints" / str(step) / "state")
        handler = ocp.PyTreeCheckpointHandler()
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder).tree
        )
        tree = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def differences(workdir: pathlib.Path, reference: pathlib.Path, rtol: float = 0.0) -> list[str]:
    """Returns how a finished run differs from the undisturbed run; empty if it does not.

    Args:
        workdir: The workdir of the run.
        reference: The workdir of the undisturbed run.
        rtol: The relative tolerance; 0 compares bits.
    """
    found = []
    step, values = arrays(workdir)
    expected_step, expected = arrays(reference)
    if (step, values.keys()) != (expected_step, expected.keys()):
        return [f"step {step} instead of {expected_step}, {len(values)} arrays"]
    other = [path for path in values if not _same(values[path], expected[path], rtol)]
    if other:
        found.append(f"{len(other)} of {len(values)} arrays differ, {other[0]} among them")
    rows, expected_rows = metrics(workdir), metrics(reference)
    if [row["step"] for row in rows] != [row["step"] for row in expected_rows]:
        found.append(f"metrics of steps {[row['step'] for row in rows]}")
    else:
        different = [
            (ours, theirs)
            for ours, theirs in zip(rows, expected_rows, strict=True)
            if not _same_row(ours, theirs, rtol)
        ]
        found += [f"{ours} instead of {theirs}" for ours, theirs in different[:1]]
    left = [path.name for path in workdir.rglob("*tmp*")]
    return found + [f"{name} is left behind" for name in left]


def _same(a: np.ndarray, b: np.ndarray, rtol: float) -> bool:
    if not rtol:
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return np.allclose(a, b, rtol=rtol, atol=rtol * 1e-2)


def _same_row(a: dict, b: dict, rtol: float) -> bool:
    return a.keys() == b.keys() and all(
        x == b[name] or (rtol and np.allclose(x, b[name], rtol=rtol)) for name, x in a.items()
    )


def copy_until(reference: pathlib.Path, workdir: pathlib.Path, step: int) -> None:
    """Makes a workdir as the reference was just after it saved a step.

    Args:
        reference: The workdir of a run that kept all checkpoints.
        workdir: The workdir to make; it may exist if it is empty.
        step: The step that was saved.
    """
    shutil.copytree(reference, workdir, dirs_exist_ok=True)
    for later in steps(workdir):
        if later > step:
            shutil.rmtree(workdir / "checkpoints" / str(later))
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    earlier = [line for line in lines if json.loads(line)["step"] <= step]
    (workdir / "metrics.jsonl").write_text("".join(earlier))
    for name in ("report.png", "report.md"):
        (workdir / name).unlink()


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to end a program.

    Attributes:
        name: A name for people.
        moment: When it ends: at a ``step``, while it is ``saving``, ``evaluating`` or
            ``starting``, or at the first ``border`` of stages that it comes to.
        seconds: The longest delay after that moment.
        signals: The signals that it gets, one after the other.
    """

    name: str
    moment: str
    seconds: float
    signals: tuple[signal.Signals, ...]


KINDS = (
    Kind("SIGKILL at a random step", "step", 0.2, (signal.SIGKILL,)),
    Kind("SIGKILL while a checkpoint is written", "saving", 0.1, (signal.SIGKILL,)),
    Kind("SIGKILL during an evaluation", "evaluating", 1.5, (signal.SIGKILL,)),
    Kind("SIGKILL during start-up", "starting", 12.0, (signal.SIGKILL,)),
    Kind("SIGTERM at a random step", "step", 0.2, (signal.SIGTERM,)),
    Kind("SIGTERM during an evaluation", "evaluating", 1.5, (signal.SIGTERM,)),
    Kind("SIGTERM during start-up", "starting", 12.0, (signal.SIGTERM,)),
    Kind("SIGTERM twice at a random step", "step", 0.2, (signal.SIGTERM, signal.SIGTERM)),
    Kind("SIGKILL during a border", "border", 0.2, (signal.SIGKILL,)),
)


@dataclasses.dataclass(frozen=True)
class Kill:
    """A moment to end a program.

    Attributes:
        kind: The way to end it.
        step: The step after which it comes; kills during start-up do not wait for it.
        seconds: The delay after the moment.
    """

    kind: Kind
    step: int
    seconds: float


def draw_elsewhere(seed: int) -> list[Kill]:
    """Returns kills during a checkpoint, an evaluation and a border, and at a random step."""
    rng = random.Random(f"elsewhere/{seed}")
    moments = ("saving", "evaluating", "border", "step")
    kinds = [next(kind for kind in KINDS if kind.moment == moment) for moment in moments]
    at = sorted(rng.sample(range(1, STEPS // 2), len(kinds)))
    return [Kill(k, step, rng.uniform(0, k.seconds)) for k, step in zip(kinds, at, strict=True)]


def draw(kills: int, seed: int, in_a_row: int = 5) -> list[list[Kill]]:
    """Returns random kills of all kinds, in one list for each run.

    Args:
        kills: The number of kills.
        seed: The seed of the random choices.
        in_a_row: The largest number of kills of one run.
    """
    rng = random.Random(seed)
    kinds: list[Kind] = []
    while len(kinds) < kills:
        kinds += rng.sample(KINDS, len(KINDS))
    rows = []
    for i in range(0, kills, in_a_row):
        row = kinds[i : min(i + in_a_row, kills)]
        at = sorted(rng.sample(range(1, STEPS + 1), len(row)))
        rows.append(
            [Kill(k, step, rng.uniform(0, k.seconds)) for k, step in zip(row, at, strict=True)]
        )
    return rows


@dataclasses.dataclass
class Outcome:
    """The outcome of a fault.

    Attributes:
        name: The name of its kind.
        wrong: Everything that is not as it should be.
        stop_seconds: The time between SIGTERM and the end, if there was a SIGTERM.
        made_again: The number of steps that were made and not saved.
    """

    name: str
    wrong: list[str] = dataclasses.field(default_factory=list)
    stop_seconds: float | None = None
    made_again: int = 0


def inflict(program: Program, workdir: pathlib.Path, kill: Kill) -> Outcome | None:
    """Starts or resumes the program, and ends it; returns None if it ended before."""
    outcome = Outcome(kill.kind.name)
    stages: list[object] = []

    def comes_to_a_border() -> bool:
        """Returns True as soon as another stage than the first one of this life begins."""
        stages.extend(filter(None, [life.status().get("stage")]))
        return len(set(stages)) > 1

    with program.started(workdir) as life:
        moments = {
            "border": comes_to_a_border,
            "step": lambda: life.step() >= kill.step,
            "saving": lambda: life.step() >= kill.step and life.saving(),
            "evaluating": lambda: life.status().get("state") == "evaluating",
            "starting": lambda: True,
        }
        if not life.wait_for(moments[kill.kind.moment]):
            outcome.wrong += _ended_well(life)
            return outcome if outcome.wrong else None
        time.sleep(kill.seconds)
        if life.exit_code is not None:
            outcome.wrong += _ended_well(life)
            return outcome if outcome.wrong else None
        for i, number in enumerate(kill.kind.signals):
            if i:
                # If two signals come at once, the system delivers only one.
                life.wait_for(lambda: "another one ends the run at once" in life.stderr)
            life.send(number)
        seconds = life.seconds_to_end()
    if signal.SIGTERM in kill.kind.signals:
        outcome.stop_seconds = seconds
    outcome.wrong += _wrong_end(life, kill.kind, seconds)
    outcome.made_again = max(life.step() - max(steps(workdir), default=0), 0)
    return outcome


def _ended_well(life: Life) -> list[str]:
    """Returns what is wrong with the end of a program that nobody ended."""
    return [] if life.exit_code == 0 else [f"exit code {life.exit_code}: {life.stderr[-500:]}"]


def _wrong_end(life: Life, kind: Kind, seconds: float) -> list[str]:
    """Returns what is wrong with an end by a signal."""
    if kind.signals == (signal.SIGKILL,):
        expected = (-signal.SIGKILL,)
    elif len(kind.signals) == 2:
        # If there is nothing to save, the first signal ends the run before the second comes.
        expected = (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    elif kind.moment == "starting":
        # Python does not listen to signals from the start.
        expected = (0, -signal.SIGTERM)
    else:
        expected = (0,)
    wrong = []
    if life.exit_code not in expected:
        wrong.append(f"exit code {life.exit_code}: {life.stderr[-500:]}")
    limit = 2.0 if len(kind.signals) == 2 else STOP_SECONDS
    if seconds > limit:
        wrong.append(f"took {seconds:.1f} s to end")
    if life.exit_code == 0:
        wrong += _wrong_stop(life)
    return wrong


def _wrong_stop(life: Life) -> list[str]:
    """Returns what is wrong with an orderly end after SIGTERM."""
    stopped = re.search(
        r"after step (\d+), which is saved: resume with the same command", life.stdout
    )
    if stopped:
        damage = find_damage(life.workdir / "checkpoints" / stopped[1])
        return [f"step {stopped[1]} is not saved: {damage}"] if damage else []
    if "nothing new to save; resume with the same command" in life.stderr:
        return []
    # The signal came when everything was done.
    return [] if "report: " in life.stdout else [f"it says {life.stdout!r}, {life.stderr[-500:]!r}"]


def kill_in_a_row(
    program: Program, folder: pathlib.Path, kills: Sequence[Kill], reference: pathlib.Path
) -> Iterator[Outcome]:
    """Ends one run after the other until all kills are done, finishes each, and compares.

    Args:
        program: The program to end.
        folder: The folder for workdirs.
        kills: The kills, in this order.
        reference: The workdir of the undisturbed run.

    Yields:
        The outcome of each kill.
    """
    coming = list(kills)
    number = 0
    while coming:
        workdir = folder / f"run{number}"
        number += 1
        done: list[Outcome] = []
        while coming and (outcome := inflict(program, workdir, coming[0])):
            done.append(outcome)
            del coming[0]
            program = program.for_next_life()
        wrong = _ended_well(program.run(workdir)) or differences(workdir, reference)
        for outcome in done:
            outcome.wrong += wrong
            yield outcome
        if not wrong:
            shutil.rmtree(workdir)
