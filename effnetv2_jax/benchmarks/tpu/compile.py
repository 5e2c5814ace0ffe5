"""Compiles the training step for TPUs that are not attached, and tells what it costs on them.

Needs libtpu (``pip install 'effnetv2_jax[tpu]'``), whose compiler runs on any Linux machine. The
benchmark ``tpu`` is the command line to it.
"""

import dataclasses
import fcntl
import importlib.util
import os
import pathlib
import struct
import time
from collections.abc import Callable
from typing import Any

from effnetv2_jax.benchmarks.timing.steps import StepSpec
from effnetv2_jax.benchmarks.tpu import records
from effnetv2_jax.benchmarks.tpu.records import CompiledStep
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.files import cache_folder
from effnetv2_jax.runtime.workers import Worker, WorkerError, import_path

# Not below TMPDIR: libtpu looks nowhere else.
LOCK_FILE = pathlib.Path("/tmp/libtpu_lockfile")


def recorded_step(
    step: StepSpec, *, topology: str, batch_per_core: int, records_file: pathlib.Path | None = None
) -> CompiledStep | None:
    """Returns the record of a step, or None if there is none.

    Records are neither read nor written while LIBTPU_INIT_ARGS gives the compiler other flags.

    Args:
        step: The step.
        topology: A name that libtpu knows, such as ``v3:4x4``, which is 16 chips of two cores.
        batch_per_core: The number of images per core and step.
        records_file: The file of the user's records. None means the one in the cache folder.

    Raises:
        UsageError: If the file is not one of records.
    """
    if os.environ.get("LIBTPU_INIT_ARGS"):
        return None
    return records.read(records_file or users_file()).get((step, topology, batch_per_core))


def compile_train_step(
    step: StepSpec,
    *,
    topology: str = "v3:4x4",
    batch_per_core: int,
    records_file: pathlib.Path | None = None,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> CompiledStep:
    """Compiles both programs of a training step for all cores of a topology.

    This takes minutes the first time. Afterwards the step is traced, and its programs are compared
    with those of the record, see ``records``. If libtpu is missing, the record is returned as it
    is.

    Args:
        step: See ``recorded_step``.
        topology: See ``recorded_step``.
        batch_per_core: See ``recorded_step``.
        records_file: See ``recorded_step``.
        on_phase: Is told what goes on, a few words at a time.

    Raises:
        UsageError: If an argument cannot be used, libtpu is missing, or another process holds its
            lock.
        RuntimeError: If the compiler fails.
    """
    for name, value in (("image_size", step.image_size), ("batch_per_core", batch_per_core)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    asked: dict[str, Any] = {"topology": topology, "batch_per_core": batch_per_core}
    known = recorded_step(step, records_file=records_file, **asked)
    if importlib.util.find_spec("libtpu") is None:
        if known:
            return known
        raise UsageError("libtpu, the TPU's compiler, is missing: pip install 'effnetv2_jax[tpu]'")
    check_lock()
    fields = dataclasses.asdict(step)
    try:
        with Worker(
            "effnetv2_jax.benchmarks.tpu.worker",
            "TpuCompiler",
            {"topology": topology},
            environment=worker_environment(),
        ) as worker:
            found = worker.call(
                "compile",
                on_tell=on_phase,
                step=fields,
                batch_per_core=batch_per_core,
                known=[known.program, known.versions] if known else [],
            )
    except WorkerError as error:
        if error.kind == "UsageError":
            raise UsageError(str(error)) from error
        raise RuntimeError(f"compiling for a TPU failed: {error}") from error
    if known and found is None:
        return dataclasses.replace(known, checked=True)
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    compiled = CompiledStep.from_json(asked | found | {"step": fields, "made": made})
    if not os.environ.get("LIBTPU_INIT_ARGS"):
        records.write(records_file or users_file(), compiled)
    return dataclasses.replace(compiled, checked=True)


def users_file() -> pathlib.Path:
    """Returns the file for what a user compiles."""
    return cache_folder() / "compiled_steps.json"


def check_lock() -> None:
    """Raises UsageError if another process holds libtpu's lock, as only one may load it at a time.

    A file that a killed process left behind is locked by nobody, and libtpu takes it over.
    """
    if os.environ.get("ALLOW_MULTIPLE_LIBTPU_LOAD") == "1":
        return
    way_out = (
        "or set ALLOW_MULTIPLE_LIBTPU_LOAD=1, which is safe if that process opens no TPU either"
    )
    try:
        with open(LOCK_FILE, "rb") as file:
            # struct flock of Linux: type, whence, start, length, process.
            layout = "hhqqi0q"
            lock = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, *_, process = struct.unpack(layout, fcntl.fcntl(file, fcntl.F_GETLK, lock))
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise UsageError(
            f"libtpu's lock {str(LOCK_FILE)!r} is another user's: wait until their process ends, "
            f"remove the file if it has, {way_out}"
        ) from error
    if kind != fcntl.F_UNLCK:
        raise UsageError(
            f"process {process} holds libtpu's lock {str(LOCK_FILE)!r}: wait until it ends, "
            f"{way_out}"
        )


def worker_environment() -> dict[str, str]:
    """Returns the environment variables that libtpu and JAX have to find when they start."""
    environment = {
        name: value
        for name, value in os.environ.items()
        # On a TPU's own machine these describe that TPU, not the one that is compiled for.
        if not name.startswith("TPU_") or name == "TPU_LIBRARY_PATH"
    }
    return environment | {
        # JAX starts no TPU, neither one that is not there nor one that somebody uses.
        "JAX_PLATFORMS": "cpu",
        # libtpu asks the cloud's metadata server for the rest of these if it may, and complains.
        # The topology is asked for by name, whatever they say.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v3-32",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        # These are meant for this machine's devices. LIBTPU_INIT_ARGS is for a TPU's.
        "XLA_FLAGS": "",
        # The seconds to compile are those of the compiler.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "PYTHONPATH": import_path(),
    }
