"""The record of a run in its workdir: which config, which classes, which data, which versions.

A workdir belongs to a run as soon as a loss is logged or a checkpoint saved. Another command may
go on with it only if training would compute the same: the arguments of training are compared, not
the fields of the config, and the data, not the place where they lie.
"""

import contextlib
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from absl import logging

from effnetv2_jax import __version__
from effnetv2_jax.runtime import hosts
from effnetv2_jax.runtime.config import training_arguments
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.files import local_path, write_atomically
from effnetv2_jax.runtime.recipe import flatten, unflatten, upgraded
from effnetv2_jax.training.build import AUTO, resolve_dtype
from effnetv2_jax.training.survival.checkpoint import read_record

CONFIG_FILE = "config.json"
CLASS_NAMES_FILE = "class_names.txt"

DATA_FILE = "data.json"

# The fields that say where the training data are.
PLACE = ("data.name", "data.dir", "data.holdout", "data.train_split")
# Libraries whose versions may change the last bit of a run's numbers.
LIBRARIES = (
    *("jax", "jaxlib", "libtpu", "flax", "optax"),
    *("orbax-checkpoint", "numpy", "tensorflow-cpu"),
)


def make_record(
    config: ml_collections.ConfigDict, class_names: Sequence[str], data: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what identifies a run, as JSON can hold it.

    Args:
        config: The config of the run.
        class_names: The names of the classes, in the order of the labels.
        data: The identity of the training split, from ``Split.identity``.

    Returns:
        ``config``, ``class_names``, ``data``, and ``versions`` of Python, the libraries and this
        package.
    """
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "config": json.loads(json.dumps(config.to_dict())),
        "class_names": list(class_names),
        "data": dict(data),
        "versions": versions | {"effnetv2_jax": __version__},
    }


def settle_dtype(config: ml_collections.ConfigDict, workdir: str) -> ml_collections.ConfigDict:
    """Returns the config with a dtype in place of ``auto``.

    A run keeps the dtype of its first start, also if it is resumed on another kind of device: the
    steps before and after would otherwise round differently.

    Args:
        config: The config of the run, which is not changed.
        workdir: The folder of the run, which need not exist.
    """
    if config.model.dtype != AUTO:
        return config
    before = ((_read_run(workdir)["config"] or {}).get("model") or {}).get("dtype", AUTO)
    config = config.copy_and_resolve_references()
    config.model.dtype = resolve_dtype(before, jax.devices()[0].platform)
    return config


def resume_record(now: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record of a run that goes on; warns if library versions have changed.

    Args:
        now: The record from ``make_record``.
        there: The record that was saved with the checkpoint.
    """
    before = there["versions"]
    changed = [
        f"{name} {before.get(name, '–')} → {version}"
        for name, version in now["versions"].items()
        if before.get(name) != version
    ]
    if changed:
        logging.warning(
            "other versions than before, whose numbers may differ in the last bit: %s",
            ", ".join(changed),
        )
    return {**there, **now}


def claim(
    workdir: str, record: Mapping[str, Any], *, accept_changed_data: bool = False
) -> pathlib.Path:
    """Makes the workdir of a new run, or checks that the workdir belongs to this run.

    Process 0 writes ``config.json``, ``class_names.txt`` and ``data.json``, which are those of the
    newest start. The other processes check that they see the same folder.

    Args:
        workdir: The folder of the run, which need not exist.
        record: The run, from ``make_record``.
        accept_changed_data: Lets a run go on with other training data of the same classes.

    Returns:
        The absolute path of the workdir.

    Raises:
        UsageError: If the workdir cannot be written, or belongs to another run.
    """
    path, trained = local_path(workdir), False
    with hosts.first_alone("workdir"):
        if hosts.is_first():
            try:
                path.mkdir(parents=True, exist_ok=True)
                for left in path.glob(".*.tmp*"):  # an earlier start was killed while it wrote
                    left.unlink()
                if trained := _has_trained(path):
                    _refuse_other_run(workdir, record, accept_changed_data)
                names = "".join(f"{name}\n" for name in record["class_names"])
                _write(path / CLASS_NAMES_FILE, names, errors="surrogateescape")
                _write(path / DATA_FILE, json.dumps(record["data"]) + "\n")
                # Written last: if it exists, everything exists.
                _write(path / CONFIG_FILE, json.dumps(record["config"], indent=2) + "\n")
            except OSError as error:
                sentence = f"workdir {workdir!r} cannot be written: {error.strerror}"
                if not trained:
                    raise UsageError(sentence) from error
                # A run that goes on waits for space, and what it knows is in its checkpoints.
                logging.warning("%s, so that it keeps the config of an earlier start", sentence)
        elif not (path / CONFIG_FILE).exists():
            raise UsageError(
                f"workdir {workdir!r} must be a folder that all processes share: process "
                f"{jax.process_index()} does not find there what process 0 wrote"
            )
    return path


def read_config(workdir: str | pathlib.Path) -> ml_collections.ConfigDict:
    """Returns the config of the run in a workdir, with the field names of today.

    Raises:
        UsageError: If there is no run.
    """
    config = _read_run(workdir)["config"]
    if config is None:
        raise UsageError(
            f"workdir {str(workdir)!r} holds no run: {CONFIG_FILE} is missing or broken there"
        )
    return ml_collections.ConfigDict(config)


def read_class_names(workdir: str | pathlib.Path) -> list[str] | None:
    """Returns the names of the classes of the run in a workdir; None if they are lost."""
    return _read_run(workdir)["class_names"]


def _has_trained(path: pathlib.Path) -> bool:
    """Returns True if there is something of a run to lose: a checkpoint, or the loss of a step."""
    if any((path / "checkpoints").glob("[0-9]*")):
        return True
    with contextlib.suppress(FileNotFoundError):
        return '/loss"' in (path / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    return False


def _refuse_other_run(workdir: str, record: Mapping[str, Any], accept_changed_data: bool) -> None:
    found = _read_run(workdir)
    there = {name: record[name] if x is None else x for name, x in found.items()}
    ours, theirs = flatten(record["config"]), flatten(there["config"])
    moved = any(ours.get(name) != theirs.get(name) for name in PLACE)
    change = _change_of_data(record["data"], there["data"], moved)
    # An old run did not write down its data. Then only the same place will do.
    unknown = moved and found["data"] is None
    accepted = change is not None and accept_changed_data
    place = () if not (change or unknown) or accepted else PLACE
    different = _different(ours, theirs, place, record["data"]["examples"])
    listed = ", ".join(
        f"{name} (there {theirs.get(name, _NOT_SET)!r}, now {ours.get(name, _NOT_SET)!r})"
        for name in different
    )
    also = f", and with other data: {change}" if change and not accepted else ""
    if set(different).difference(PLACE if also else ()):
        raise UsageError(
            f"workdir {workdir!r} holds a run with another config: {listed}{also}; "
            "use the same config to resume it, or another workdir"
        )
    if record["class_names"] != there["class_names"]:
        here, now = len(there["class_names"]), len(record["class_names"])
        counts = f" ({here} there, {now} now)" if here != now else ""
        raise UsageError(
            f"workdir {workdir!r} holds a run on other classes than those of "
            f"{record['config']['data']['name']} now{counts}, {CLASS_NAMES_FILE} has the run's: "
            "restore the data, or use another workdir"
        )
    if accepted:
        logging.warning("going on with other data, as asked: %s", change)
    elif change:
        raise UsageError(
            f"workdir {workdir!r} holds a run on other data: {change}"
            f"{', with ' if listed else ''}{listed}; restore the data, use "
            "another workdir, or add --accept_changed_data to go on with what is there now, with "
            "the ends of stages and the order of examples that follow from it"
        )


class _NotSet:
    def __repr__(self) -> str:
        return "not set"


_NOT_SET = _NotSet()


def _change_of_data(now: Mapping[str, Any], there: Mapping[str, Any], moved: bool) -> str | None:
    """Returns how the training data differ from those of the run there, None if they do not."""
    if now["examples"] != there["examples"]:
        return f"{there['examples']} training examples then, {now['examples']} now"
    if now["names"] != there["names"]:
        return f"{now['examples']} training examples as then, but under other names"
    # In their place, files may be mended.
    if moved and now["sizes"] != there["sizes"]:
        return (
            f"{now['examples']} training examples of the same names, but with files of other sizes"
        )
    return None


def _different(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], place: Sequence[str], num_examples: int
) -> list[str]:
    """Returns the fields because of which two runs train differently.

    Args:
        ours, theirs: The configs, flat.
        place: The fields that matter although training does not get them as arguments.
        num_examples: The number of training examples.
    """

    def decides(flat: Mapping[str, Any]) -> object:
        try:
            config = ml_collections.ConfigDict(upgraded(unflatten(flat)))
            arguments: object = training_arguments(config, num_examples)
        except (UsageError, AttributeError, KeyError, TypeError, ValueError) as error:
            # A config of another version, or fields that do not go together.
            arguments = repr(error)
        return arguments, [flat.get(name) for name in place]

    def with_one_of_ours(name: str) -> dict[str, Any]:
        others = {other: x for other, x in theirs.items() if other != name}
        return others | ({name: ours[name]} if name in ours else {})

    before = decides(theirs)
    if decides(ours) == before:
        return []
    names = sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name, {}) != theirs.get(name, {})
    )
    # Fields that change something only together are all named.
    return [name for name in names if decides(with_one_of_ours(name)) != before] or names


def _read_run(workdir: str | pathlib.Path) -> dict[str, Any]:
    """Returns ``config``, ``class_names`` and ``data`` of a run; None for what is not there.

    The newest checkpoint remembers them as well, which replaces a file that got lost.
    """
    path = local_path(workdir)
    found: dict[str, Any] = dict.fromkeys(("config", "class_names", "data"))
    for name, file in (("config", CONFIG_FILE), ("data", DATA_FILE)):
        with contextlib.suppress(OSError, ValueError):
            found[name] = json.loads((path / file).read_text(encoding="utf-8"))
    with contextlib.suppress(OSError):
        text = (path / CLASS_NAMES_FILE).read_text(encoding="utf-8", errors="surrogateescape")
        found["class_names"] = text.split("\n")[:-1]
    if None in found.values():
        record = read_record(path) or {}
        found = {name: record.get(name) if x is None else x for name, x in found.items()}
    if found["config"] is not None:
        found["config"] = upgraded(found["config"])
    return found


def _write(path: pathlib.Path, text: str, errors: str = "strict") -> None:
    """Writes a file unless it has this text already."""
    with contextlib.suppress(OSError, ValueError):
        if path.read_text(encoding="utf-8", errors=errors) == text:
            return
    write_atomically(path, text, errors=errors)
