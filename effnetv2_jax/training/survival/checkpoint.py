"""Checkpoints of a run, through Orbax: whole or not there, written in the background, checked.

A checkpoint holds the state and a record: the config, class names, versions and whatever else the
run needs to go on. When it is written, every array is read back. Then ``checksums.json`` beside
them gets the size and CRC-32 of every file, and the folder gets its name. So a folder whose name is
a number could be read once, and it can be read now if its files still match the checksums.
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
import tensorstore as ts
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.files import local_path, plain_path, write_atomically
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.survival.packing import abstract_packed, pack, unpack, unpack_small

CHECKSUMS = "checksums.json"
DAMAGED = "damaged_checkpoints"

# Orbax rewrites this file after the folder has its name.
_REWRITTEN = "_CHECKPOINT_METADATA"
_CHUNK = 1 << 24
# The number of arrays that are read back at once: some for speed, not all for memory.
_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class Keep:
    """The rules by which checkpoints stay: one that matches any rule is kept.

    Attributes:
        newest: The number of newest checkpoints to keep.
        every_steps: Keep checkpoints of all multiples of this number of steps; 0 for none.
        best: The number of checkpoints with the highest scores to keep.
    """

    newest: int = 3
    every_steps: int = 0
    best: int = 1


class Checkpoints:
    """The checkpoints under ``workdir/checkpoints``.

    With several processes, all of them call the same methods in the same order.

    Args:
        workdir: The folder of the run.
        keep: The rules by which checkpoints stay.
        scores: The scores of evaluated steps, higher is better. The caller may add to the dict
            while the run goes on.
        read_only: Change nothing in the workdir.

    Raises:
        UsageError: If there are checkpoints, but all are damaged.
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
        # Only one process looks, so that all see the same.
        found = self._find_newest() if jax.process_index() == 0 else None
        if jax.process_count() > 1:
            number = multihost_utils.broadcast_one_to_all(np.int32(-1 if found is None else found))
            found = int(number) if number >= 0 else None
        self._found = found
        self._paths = contextlib.ExitStack()
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        if not self._read_only:
            self._directory.mkdir(parents=True, exist_ok=True)
        self._paths.close()
        self._plain = self._paths.enter_context(plain_path(self._directory))
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
            # Weights are nearly random, so they hardly compress.
            "state": ocp.PyTreeCheckpointHandler(use_compression=False),
            "record": ocp.JsonCheckpointHandler(),
        }
        return ocp.CheckpointManager(self._plain, options=options, item_handlers=handlers)

    def latest_step(self) -> int | None:
        """Returns the step that ``restore`` reads: the newest undamaged one, or None."""
        return self._found

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints that are complete on the disk, in order."""
        return _steps(self._directory)

    def last_saved(self) -> int:
        """Returns the last of ``steps``, or 0."""
        return max(self.steps(), default=0)

    def choose(self, name: str) -> int:
        """Returns the step that a name stands for.

        Args:
            name: ``newest``, ``best`` (by ``scores``), or a step.

        Raises:
            UsageError: If there is no such checkpoint, or it is damaged.
        """
        if self._found is None:
            raise UsageError(f"workdir {str(self._workdir)!r} holds no checkpoint yet")
        names = {str(step): step for step in self.steps()} | {"newest": self._found}
        if ranked := _ranked(self.steps(), self.scores):
            names["best"] = ranked[0]
        if name not in names:
            raise UsageError(f"checkpoint must be one of {', '.join(names)}, got {name!r}")
        if damage := find_damage(self._directory / str(names[name])):
            raise UsageError(f"the checkpoint of step {names[name]} is damaged ({damage})")
        return names[name]

    def record(self) -> dict[str, Any]:
        """Returns the record that was saved with ``latest_step``."""
        return _read_record(self._directory / str(self._found))

    def restore(self, shapes: TrainState, mesh: Mesh, step: int | None = None) -> TrainState:
        """Reads a checkpoint onto the mesh, whatever mesh it was written from.

        Args:
            shapes: The state's shapes, from ``jax.eval_shape``.
            mesh: The mesh from ``make_mesh``.
            step: A step from ``choose``; None for ``latest_step``.
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

        An error, now or in the save before, is logged and does not end the run. A checkpoint that
        could not be written leaves nothing behind.

        Args:
            state: The state of the run. It may be donated or changed after this returns.
            record: Values that JSON can hold. They may be changed after this returns.
        """
        self.finish()
        self._saving = int(state.step)
        try:
            if self._failed or not self._plain.exists():
                # Orbax has forgotten the checkpoints that it meant to delete after the failed one.
                # Without its link, which systems delete as an old temporary file, it would write
                # into a folder that nobody looks at.
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
        except Exception as error:  # Orbax, TensorStore and the system share no narrower class.
            self._report(error)

    def finish(self) -> None:
        """Waits until the last save has ended, and logs the reason if it failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._report(error)

    def reached_preemption(self, count: int) -> bool:
        """Returns True if the machine will end, in all processes at the same ``count`` of calls."""
        return self._manager.reached_preemption(count)

    def close(self) -> None:
        """Waits until the last save has ended, and frees Orbax's threads."""
        self.finish()
        self._manager.close()
        self._paths.close()

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
            # Its files take space, and space may be what is missing.
            for folder in self._directory.glob(f"{self._saving}.*"):
                shutil.rmtree(folder, ignore_errors=True)

    def _write_checksums(self) -> None:
        """Reads all arrays back and writes ``checksums.json``; then the folder gets its name."""
        # Orbax calls this in process 0.
        (name,) = [path.name for path in self._directory.glob(f"{self._saving}.*")]
        folder = self._plain / name
        arrays = _open_arrays(folder)
        for start in range(0, len(arrays), _AT_ONCE):
            for future in [x.read() for x in arrays[start : start + _AT_ONCE]]:
                future.result()
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        files.remove(folder / _REWRITTEN)
        sums = {path.relative_to(folder).as_posix(): _checksum(path) for path in files}
        write_atomically(folder / CHECKSUMS, json.dumps(sums) + "\n")

    def _find_newest(self) -> int | None:
        """Returns the newest undamaged step; moves damaged ones after it out of the way."""
        good, damages = _look(self._directory)
        if damages and good is None:
            step, damage = next(iter(damages.items()))
            raise UsageError(
                f"all {len(damages)} checkpoints of workdir {str(self._workdir)!r} are damaged, "
                f"the newest is {step} ({damage}): restore them, or use another workdir"
            )
        for step, damage in damages.items():
            place = ""
            if not self._read_only:
                # It is kept: somebody may want to see what happened, or still have a missing file.
                folder = self._workdir / DAMAGED
                folder.mkdir(exist_ok=True)
                target, number = folder / str(step), 1
                while target.exists():
                    number += 1
                    target = folder / f"{step}_{number}"
                (self._directory / str(step)).rename(target)
                place = f", now {DAMAGED}/{target.name}"
            logging.warning(
                "the checkpoint of step %d is damaged (%s)%s; the one of step %d is used instead",
                *(step, damage, place, good),
            )
        return good


@dataclasses.dataclass(frozen=True)
class _Best:
    """A rule to keep the best, by scores that become known after a checkpoint was saved.

    Orbax's own rule knows only scores from before.
    """

    number: int
    scores: Mapping[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [info.step for info in checkpoints]
        best = _ranked(steps, self.scores)[: self.number]
        return [step in best for step in steps]


def _ranked(steps: Sequence[int], scores: Mapping[int, float]) -> list[int]:
    """Returns the steps that have a score, the best first."""
    # Of equal scores the latest step wins: it has seen more examples.
    scored = [step for step in steps if step in scores]
    return sorted(scored, key=lambda step: (scores[step], step), reverse=True)


def find_damage(folder: pathlib.Path) -> str | None:
    """Returns what is wrong with a checkpoint, or None.

    Nothing is wrong if its files match their checksums and its store knows all of its arrays.

    Args:
        folder: The folder of one step.
    """
    with plain_path(folder) as plain:
        return _damage(plain)


def _damage(folder: pathlib.Path) -> str | None:
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        for name, expected in sums.items():
            found = _checksum(folder / name)
            if found["bytes"] != expected["bytes"]:
                return f"{name} has {found['bytes']} of {expected['bytes']} bytes"
            if found != expected:
                return f"{name} has other contents than were written"
        _open_arrays(folder)
    except _Unreadable as error:
        return str(error)
    except FileNotFoundError as error:
        return f"{pathlib.Path(error.filename).relative_to(folder)} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{CHECKSUMS} cannot be read: {error}"
    return None


class _Unreadable(Exception):
    """An array is not where a checkpoint says that it is."""


def _open_arrays(folder: pathlib.Path) -> list[ts.TensorStore]:
    """Opens the arrays that a checkpoint must have, without reading their numbers.

    Args:
        folder: The folder of one step, or one that will be; a plain path.

    Raises:
        _Unreadable: If one is not there.
        OSError: If there is no list of them.
    """
    metadata = json.loads((folder / "state" / "_METADATA").read_text(encoding="utf-8"))
    names = [
        ".".join(part["key"] for part in tree["key_metadata"])
        for tree in metadata["tree_metadata"].values()
        if not tree["value_metadata"]["skip_deserialize"]  # an empty dict
    ]
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/state/"}}
    # Otherwise what is not there would be read as zeros.
    options = {"driver": "zarr", "fill_missing_data_reads": False}
    specs = [options | {"kvstore": store | {"path": f"{name}/"}} for name in names]
    futures = [ts.open(spec, open=True) for spec in specs]
    arrays = []
    for name, future in zip(names, futures, strict=True):
        try:
            arrays.append(future.result())
        except ValueError as error:  # TensorStore's class for whatever went wrong
            raise _Unreadable(f"its array {name} cannot be read") from error
    return arrays


def _look(directory: pathlib.Path) -> tuple[int | None, dict[int, str]]:
    """Returns the newest undamaged step or None, and the damages of later ones, newest first."""
    damages: dict[int, str] = {}
    for step in reversed(_steps(directory)):
        damage = find_damage(directory / str(step))
        if damage is None:
            return step, damages
        damages[step] = damage
    return None, damages


def newest_good(workdir: str | pathlib.Path) -> int | None:
    """Returns the step of a run's newest undamaged checkpoint, or None; changes nothing."""
    return _look(_directory(workdir))[0]


def read_record(workdir: str | pathlib.Path, step: int | None = None) -> dict[str, Any] | None:
    """Returns the record that was saved with a checkpoint, or None if none is undamaged.

    Args:
        workdir: The folder of the run, in which nothing is changed.
        step: The step of the checkpoint; None for the newest undamaged one.
    """
    step = newest_good(workdir) if step is None else step
    return None if step is None else _read_record(_directory(workdir) / str(step))


def read_parts(
    workdir: str | pathlib.Path, step: int, parts: Collection[str]
) -> dict[str, np.ndarray]:
    """Reads only some parts of a checkpoint's state, such as the averaged parameters.

    Args:
        workdir: The folder of the run.
        step: The step of the checkpoint.
        parts: Names of fields of ``TrainState``.

    Returns:
        Arrays by their path in the state, such as ``ema_params/stem/conv/kernel``.
    """
    folder = _directory(workdir) / str(step)
    handler = ocp.PyTreeCheckpointHandler()
    with plain_path(folder) as plain:
        path = epath.Path(plain / "state")
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
    return local_path(workdir) / "checkpoints"


def _read_record(folder: pathlib.Path) -> dict[str, Any]:
    # Orbax's checkpointers wait for all processes, its handlers do not.
    with plain_path(folder) as plain:
        return ocp.JsonCheckpointHandler().restore(epath.Path(plain / "record"))


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
