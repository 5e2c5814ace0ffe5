"""Checkpoints of a run, through Orbax: atomic, written in the background, checked when read.

A checkpoint holds the state and a record: the config, class names, versions and whatever else the
run needs to go on. ``checksums.json`` beside them has the size and CRC-32 of every file; it is
written last, before the folder gets its name, so a folder with a number for a name was complete
once, and is complete if its files are still those.
"""

import contextlib
import copy
import dataclasses
import json
import pathlib
import shutil
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.files import write_atomically
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.survival.packing import (
    abstract_packed,
    pack,
    unpack,
    unpack_small,
)

CHECKSUMS = "checksums.json"
DAMAGED = "damaged_checkpoints"

# By Orbax, once the folder has its name.
_REWRITTEN = "_CHECKPOINT_METADATA"
_CHUNK = 1 << 24


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which checkpoints stay; one that any of these wants does.

    Attributes:
        newest: so many of the last.
        every_steps: those of a multiple of so many steps; 0 for none.
        best: so many with the highest score.
    """

    newest: int = 3
    every_steps: int = 0
    best: int = 1


class Checkpoints:
    """The checkpoints under ``workdir/checkpoints``.

    With several processes, all of them call the same methods in the same order.

    Args:
        workdir: of the run.
        keep: which checkpoints stay.
        scores: of evaluated steps, higher is better; grows while the run goes on.
        read_only: changes nothing in the workdir.

    Raises:
        UsageError: where there are checkpoints, but all are damaged.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        keep: Keep = Keep(),
        scores: dict[int, float] | None = None,
        read_only: bool = False,
    ):
        self._directory = _directory(workdir)
        self._workdir = self._directory.parent
        self._keep = keep
        self.scores = {} if scores is None else scores
        self._read_only = read_only
        self._saving: int | None = None
        self._failed = False
        # One process looks, so that all see the same.
        found = self._newest_good() if jax.process_index() == 0 else None
        if jax.process_count() > 1:
            number = multihost_utils.broadcast_one_to_all(np.int32(-1 if found is None else found))
            found = int(number) if number >= 0 else None
        self._found = found
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        policies = ocp.checkpoint_managers
        keep: list[Any] = [policies.LatestN(self._keep.newest), _Best(self._keep.best, self.scores)]
        if self._keep.every_steps:
            keep.append(policies.EveryNSteps(self._keep.every_steps))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            create=not self._read_only,
            cleanup_tmp_directories=not self._read_only,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        handlers = {
            # What is nearly random does not compress.
            "state": ocp.PyTreeCheckpointHandler(use_compression=False),
            "record": ocp.JsonCheckpointHandler(),
        }
        return ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

    def latest_step(self) -> int | None:
        """The step that would be restored: the newest undamaged one; None where there is none."""
        return self._found

    def steps(self) -> list[int]:
        """Of all checkpoints that are complete on the disk, in order."""
        return _steps(self._directory)

    def choose(self, name: str) -> int:
        """The step that a name stands for.

        Args:
            name: ``newest``, ``best`` (by ``scores``), or a step.

        Raises:
            UsageError: where there is no such checkpoint, or it is damaged.
        """
        steps = self.steps()
        if self._found is None:
            raise UsageError(f"workdir {str(self._workdir)!r} holds no checkpoint yet")
        scored = [step for step in steps if step in self.scores]
        best = max(scored, key=lambda step: (self.scores[step], step), default=None)
        names = {str(step): step for step in steps} | {"newest": self._found}
        names |= {} if best is None else {"best": best}
        if name not in names:
            raise UsageError(f"checkpoint must be one of {', '.join(names)}, got {name!r}")
        if damage := find_damage(self._directory / str(names[name])):
            raise UsageError(f"the checkpoint of step {names[name]} is damaged ({damage})")
        return names[name]

    def record(self) -> dict[str, Any]:
        """What ``save`` was given beside the state, of ``latest_step``."""
        return _read_record(self._directory / str(self._found))

    def restore(self, shapes: TrainState, mesh: Mesh, step: int | None = None) -> TrainState:
        """Reads a checkpoint onto the mesh, whatever mesh it was written from.

        Args:
            shapes: of the state, from ``jax.eval_shape``.
            mesh: from ``make_mesh``.
            step: from ``choose``; None for ``latest_step``.
        """
        step = self._found if step is None else step
        target = abstract_packed(shapes, mesh)
        arguments = ocp.args.PyTreeRestore(
            target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
        )
        items = ocp.args.Composite(state=arguments)
        packed = self._manager.restore(step, args=items).state
        places = _read_record(self._directory / str(step))["small"]
        return unpack(packed, places, shapes, mesh)

    def save(self, state: TrainState, record: Mapping[str, Any]) -> None:
        """Begins to save in the background, unless this step is saved already.

        What goes wrong, now or with the save before, is logged and does not end the run; a
        checkpoint that could not be written leaves nothing behind.

        Args:
            state: of the run.
            record: of what JSON can hold; like the state, it may change once this returns.
        """
        self.finish()
        self._saving = int(state.step)
        try:
            if self._failed:
                # Orbax has forgotten those that it would have deleted after the one that failed.
                self._manager, self._failed = self._open(), False
            if self._saving in self._manager.all_steps():
                return
            packed, places = pack(state)
            # A copy: Orbax writes it while the caller goes on appending to its lists.
            record = copy.deepcopy(dict(record))
            items = ocp.args.Composite(
                state=ocp.args.PyTreeSave(packed),
                record=ocp.args.JsonSave({**record, "small": places}),
            )
            self._manager.save(self._saving, args=items, force=True)
        except Exception as error:  # Orbax, TensorStore and the system have no common one.
            self._report(error)

    def finish(self) -> None:
        """Waits for what is being written, and logs why where it could not be."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._report(error)

    def reached_preemption(self, count: int) -> bool:
        """Whether the machine has announced its end; true in all processes at the same count.

        Args:
            count: how often this process has asked.
        """
        return self._manager.reached_preemption(count)

    def close(self) -> None:
        """Waits for what is still being written."""
        self.finish()
        self._manager.close()

    def _report(self, error: Exception) -> None:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        logging.error(
            "the checkpoint of step %s could not be written (%s); training goes on without it",
            self._saving,
            reason,
        )
        self._failed = True
        with contextlib.suppress(Exception):
            self._manager.close()
        if jax.process_index() == 0:
            # What is there of it takes space that may be what is missing.
            for folder in self._directory.glob(f"{self._saving}.*"):
                shutil.rmtree(folder, ignore_errors=True)

    def _write_checksums(self) -> None:
        """Called by Orbax, in process 0, when all files are written, before the folder is named."""
        (folder,) = self._directory.glob(f"{self._saving}.*")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        files.remove(folder / _REWRITTEN)
        sums = {path.relative_to(folder).as_posix(): _checksum(path) for path in files}
        write_atomically(folder / CHECKSUMS, json.dumps(sums) + "\n")

    def _newest_good(self) -> int | None:
        """The newest undamaged step; those after it are put aside."""
        damages: dict[int, str] = {}
        for step in reversed(_steps(self._directory)):
            damage = find_damage(self._directory / str(step))
            if damage is None:
                self._set_aside(damages, step)
                return step
            damages[step] = damage
        if damages:
            step, damage = next(iter(damages.items()))
            raise UsageError(
                f"all {len(damages)} checkpoints of workdir {str(self._workdir)!r} are damaged, "
                f"the newest is {step} ({damage}): restore them, or use another workdir"
            )
        return None

    def _set_aside(self, damages: Mapping[int, str], good: int) -> None:
        for step, damage in damages.items():
            place = ""
            if not self._read_only:
                # Not deleted: somebody may want to see what happened, or have the missing file.
                folder = self._workdir / DAMAGED
                folder.mkdir(exist_ok=True)
                target = folder / str(step)
                number = 1
                while target.exists():
                    number += 1
                    target = folder / f"{step}_{number}"
                (self._directory / str(step)).rename(target)
                place = f", now {DAMAGED}/{target.name}"
            logging.warning(
                "the checkpoint of step %d is damaged (%s)%s; the one of step %d is used instead",
                step,
                damage,
                place,
                good,
            )


@dataclasses.dataclass(frozen=True)
class _Best:
    """Orbax's own policy knows only scores that were known when the checkpoint was saved."""

    number: int
    scores: Mapping[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        scored = [info.step for info in checkpoints if info.step in self.scores]
        # Of equal ones the latest: it has seen more.
        ranked = sorted(scored, key=lambda step: (self.scores[step], step), reverse=True)
        best = ranked[: self.number]
        return [info.step in best for info in checkpoints]


def find_damage(folder: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint's files; None where they are those that were written.

    Args:
        folder: of one step.
    """
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        for name, expected in sums.items():
            found = _checksum(folder / name)
            if found["bytes"] != expected["bytes"]:
                return f"{name} has {found['bytes']} of {expected['bytes']} bytes"
            if found != expected:
                return f"{name} has other contents than were written"
    except FileNotFoundError as error:
        return f"{pathlib.Path(error.filename).relative_to(folder)} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{CHECKSUMS} cannot be read: {error}"
    return None


def newest_good(workdir: str | pathlib.Path) -> int | None:
    """The step of a run's newest undamaged checkpoint, None without one; changes nothing."""
    directory = _directory(workdir)
    steps = reversed(_steps(directory))
    return next((step for step in steps if find_damage(directory / str(step)) is None), None)


def read_record(workdir: str | pathlib.Path, step: int | None = None) -> dict[str, Any] | None:
    """What a checkpoint has beside the state.

    Args:
        workdir: of the run, where nothing is changed.
        step: of the checkpoint; None for the newest undamaged one.

    Returns:
        What ``Checkpoints.save`` was given; None where there is no undamaged one.
    """
    step = newest_good(workdir) if step is None else step
    return None if step is None else _read_record(_directory(workdir) / str(step))


def read_parts(
    workdir: str | pathlib.Path, step: int, parts: Collection[str]
) -> dict[str, np.ndarray]:
    """Parts of a checkpoint's state alone, such as the averaged parameters.

    Args:
        workdir: of the run.
        step: of the checkpoint.
        parts: fields of ``TrainState``.

    Returns:
        Arrays by their path in the state, such as ``ema_params/stem/conv/kernel``.
    """
    folder = _directory(workdir) / str(step)
    handler = ocp.PyTreeCheckpointHandler()
    path = epath.Path(folder / "state")
    tree = handler.metadata(path).tree
    large = {name: tree["large"][name] for name in parts if name in tree["large"]}
    wanted = {"large": large, "small": tree["small"]}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    arguments = ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
    packed = handler.restore(path, args=arguments)
    small = unpack_small(packed["small"], _read_record(folder)["small"])
    arrays = ocp.tree.to_flat_dict(packed["large"], sep="/") | small
    return {name: x for name, x in arrays.items() if name.partition("/")[0] in parts}


def _directory(workdir: str | pathlib.Path) -> pathlib.Path:
    # Orbax wants an absolute path.
    return pathlib.Path(workdir).expanduser().resolve() / "checkpoints"


def _read_record(folder: pathlib.Path) -> dict[str, Any]:
    # Orbax's checkpointers wait for all processes, its handlers do not.
    return ocp.JsonCheckpointHandler().restore(epath.Path(folder / "record"))


def _steps(directory: pathlib.Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def _checksum(path: pathlib.Path) -> dict[str, int]:
    size, crc = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return {"bytes": size, "crc32": crc}
