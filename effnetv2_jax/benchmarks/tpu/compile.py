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

from effnetv2_jax.benchmarks.timing.steps import StepSpec
from effnetv2_jax.benchmarks.tpu import records
from effnetv2_jax.benchmarks.tpu.records import CompiledStep
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.workers import Worker, WorkerError, import_path

# Not below TMPDIR: libtpu looks nowhere else.
LOCK_FILE = pathlib.Path("/tmp/libtpu_lockfile")


class NotRecorded(LookupError):
    """A step that was not compiled before."""


def compile_train_step(
    step: StepSpec,
    *,
    topology: str = "v3:4x4",
    batch_per_core: int,
    records_file: pathlib.Path | None = None,
    recorded_only: bool = False,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> CompiledStep:
    """Compiles both programs of a training step for all cores of a topology.

    This takes minutes the first time. Afterwards the step is traced, and its programs are compared
    with those of the record, see ``records``. If libtpu is missing, the record is returned as it
    is. Records are neither read nor written while LIBTPU_INIT_ARGS gives the compiler other flags.

    Args:
        step: The step.
        topology: A name that libtpu knows, such as ``v3:4x4``, which is 16 chips of two cores.
        batch_per_core: The number of images a core and step.
        records_file: The file of the user's records. None means the one in the cache folder.
        recorded_only: Compiles and traces nothing.
        on_phase: Is told what goes on, a few words at a time.

    Raises:
        UsageError: If an argument cannot be used, libtpu is missing, or another process holds its
            lock.
        NotRecorded: If ``recorded_only`` is True and there is no record.
        RuntimeError: If the compiler fails.
    """
    for name, value in (("image_size", step.image_size), ("batch_per_core", batch_per_core)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    use_records = not os.environ.get("LIBTPU_INIT_ARGS")
    file = records_file or records.users_file()
    known = records.read(file).get((step, topology, batch_per_core)) if use_records else None
    installed = importlib.util.find_spec("libtpu") is not None
    if known and (recorded_only or not installed):
        return known
    if recorded_only:
        raise NotRecorded(f"{step.model} at {step.image_size} px was not compiled for {topology}")
    if not installed:
        raise UsageError("libtpu, the TPU's compiler, is missing: pip install 'effnetv2_jax[tpu]'")
    check_lock()
    arguments = {
        "step": dataclasses.asdict(step),
        "batch_per_core": batch_per_core,
        "known": [known.program, known.versions] if known else [],
    }
    try:
        with Worker(
            "effnetv2_jax.benchmarks.tpu.worker",
            "TpuCompiler",
            {"topology": topology},
            environment=worker_environment(),
        ) as worker:
            found = worker.call("compile", on_tell=on_phase, **arguments)
    except WorkerError as error:
        if error.kind == "UsageError":
            raise UsageError(str(error)) from error
        raise RuntimeError(f"compiling for a TPU failed: {error}") from error
    if known and found is None:
        return dataclasses.replace(known, checked=True)
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    asked = {"step": arguments["step"], "topology": topology, "batch_per_core": batch_per_core}
    compiled = CompiledStep.from_json(asked | found | {"made": made})
    if use_records:
        records.write(file, compiled)
    return dataclasses.replace(compiled, checked=True)


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
