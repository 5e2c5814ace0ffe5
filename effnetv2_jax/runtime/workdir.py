"""The record of a run in its workdir: which config, which classes, which versions."""

import contextlib
import importlib.metadata
import json
import pathlib
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from absl import logging

from effnetv2_jax import __version__
from effnetv2_jax.runtime import hosts
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.files import write_atomically
from effnetv2_jax.runtime.recipe import flatten, upgraded
from effnetv2_jax.training.build import AUTO, resolve_dtype
from effnetv2_jax.training.survival.checkpoint import read_record

CONFIG_FILE = "config.json"
CLASS_NAMES_FILE = "class_names.txt"

# Fields that may differ between two starts in the same workdir: they do not change the numbers.
FREE_FIELDS = re.compile(
    r"log_every_steps|max_bad_steps|stall_seconds|fsdp|model\.(remat|scan_blocks)|checkpoint\..*"
)
# Libraries whose versions may change the last bit of a run's numbers.
LIBRARIES = (
    *("jax", "jaxlib", "libtpu", "flax", "optax"),
    *("orbax-checkpoint", "numpy", "tensorflow-cpu"),
)


def make_record(config: ml_collections.ConfigDict, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns what identifies a run, as JSON can hold it.

    Args:
        config: The config of the run.
        class_names: The names of the classes, in the order of the labels.

    Returns:
        ``config``, ``class_names``, and ``versions`` of Python, the libraries and this package.
    """
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "config": json.loads(json.dumps(config.to_dict())),
        "class_names": list(class_names),
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


def claim(workdir: str, record: Mapping[str, Any]) -> pathlib.Path:
    """Makes the workdir of a new run, or checks that the workdir belongs to this run.

    Process 0 writes ``config.json`` and ``class_names.txt``. The other processes check that they
    see the same folder.

    Args:
        workdir: The folder of the run, which need not exist.
        record: The run, from ``make_record``.

    Returns:
        The absolute path of the workdir.

    Raises:
        UsageError: If the workdir cannot be written, or belongs to another run.
    """
    path = pathlib.Path(workdir).expanduser().resolve()
    with hosts.first_alone("workdir"):
        if hosts.is_first():
            try:
                path.mkdir(parents=True, exist_ok=True)
                _refuse_other_run(workdir, record)
                names = path / CLASS_NAMES_FILE
                if not names.exists():
                    text = "".join(f"{name}\n" for name in record["class_names"])
                    write_atomically(names, text, errors="surrogateescape")
                # Written last: if it exists, everything exists.
                if not (path / CONFIG_FILE).exists():
                    text = json.dumps(record["config"], indent=2)
                    write_atomically(path / CONFIG_FILE, text + "\n")
            except OSError as error:
                raise UsageError(
                    f"workdir {workdir!r} cannot be written: {error.strerror}"
                ) from error
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


def _refuse_other_run(workdir: str, record: Mapping[str, Any]) -> None:
    there = {name: record[name] if x is None else x for name, x in _read_run(workdir).items()}
    ours, theirs = flatten(record["config"]), flatten(there["config"])
    different = [
        f"{name} (there {theirs.get(name)!r}, now {ours.get(name)!r})"
        for name in sorted(ours.keys() | theirs.keys())
        if not FREE_FIELDS.fullmatch(name) and ours.get(name) != theirs.get(name)
    ]
    if different:
        raise UsageError(
            f"workdir {workdir!r} holds a run with another config: {', '.join(different)}; "
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


def _read_run(workdir: str | pathlib.Path) -> dict[str, Any]:
    """Returns ``config`` and ``class_names`` of the run in a workdir; None if there is none.

    The newest checkpoint remembers them as well, which replaces a file that got lost.
    """
    path = pathlib.Path(workdir).expanduser().resolve()
    config = names = None
    with contextlib.suppress(OSError, ValueError):
        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    with contextlib.suppress(OSError):
        text = (path / CLASS_NAMES_FILE).read_text(encoding="utf-8", errors="surrogateescape")
        names = text.split("\n")[:-1]
    record = (read_record(path) if config is None or names is None else None) or {}
    config = record.get("config") if config is None else config
    return {
        "config": None if config is None else upgraded(config),
        "class_names": record.get("class_names") if names is None else names,
    }
