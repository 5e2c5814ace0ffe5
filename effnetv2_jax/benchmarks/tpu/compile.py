"""Compiles the training step for TPUs that are not there, and tells what it would cost on them.

Needs libtpu (``pip install 'effnetv2_jax[tpu]'``), whose compiler runs on any Linux machine. The
``tpu`` benchmark is the command line to it.
"""

import dataclasses
import fcntl
import importlib.util
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from effnetv2_jax.benchmarks.tpu import step_records
from effnetv2_jax.benchmarks.tpu.collectives import Collectives
from effnetv2_jax.benchmarks.tpu.figures import ProgramFigures
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.files import cache_folder

# Not under TMPDIR: libtpu looks nowhere else.
LOCK_FILE = pathlib.Path("/tmp/libtpu_lockfile")

WORKER = (sys.executable, "-m", "effnetv2_jax.benchmarks.tpu.worker")


class NotRecorded(LookupError):
    """A step that was not compiled before."""


@dataclasses.dataclass(frozen=True)
class TpuCompilation:
    """What a training step costs on one core of a TPU; JSON knows ``dataclasses.asdict`` of it.

    Attributes:
        model: a name of ``list_models()``.
        image_size: side in px.
        topology: kind of chip and their arrangement.
        device_kind: as JAX names it.
        cores: devices of the topology.
        batch_per_core: images a core and step.
        options: the other arguments of ``compile_train_step``.
        fits: whether the step and the state it works on fit into a core's memory.
        hbm_used: bytes a core at the fuller moment of the step: of the program that runs, or that
            the compiler refused, and of what lies beside it.
        hbm_limit: bytes a core that programs may use, as its compiler has it.
        flops: a core and step, two a multiply-add; None, as all below, where the compiler refused.
        bytes_accessed: a core and step, read and written in its memory.
        seconds: a step by XLA's estimate, which hardly counts collectives; None also where XLA
            makes no estimate for the chip.
        collectives: that a core takes part in every step, by kind.
        compile_seconds: of both programs, when they were compiled.
        versions: of jax, jaxlib and libtpu.
        outdated: whether the code of the step read otherwise when it was compiled.
    """

    model: str
    image_size: int
    topology: str
    device_kind: str
    cores: int
    batch_per_core: int
    options: dict[str, Any]
    fits: bool
    hbm_used: int
    hbm_limit: int
    flops: float | None
    bytes_accessed: float | None
    seconds: float | None
    collectives: dict[str, Collectives] | None
    compile_seconds: float
    versions: dict[str, str]
    outdated: bool = False

    @property
    def hbm_margin(self) -> int:
        """Bytes a core that stay free; below 0 where it does not fit."""
        return self.hbm_limit - self.hbm_used

    @property
    def images_per_second_per_core(self) -> float | None:
        """By XLA's estimate."""
        return self.batch_per_core / self.seconds if self.fits and self.seconds else None


def compile_train_step(
    model: str,
    *,
    image_size: int,
    topology: str = "v3:4x4",
    batch_per_core: int,
    optimizer: str = "rmsprop",
    dtype: str = "bfloat16",
    num_classes: int = 1000,
    bn_group_size: int | None = None,
    remat: str = "none",
    scan_blocks: bool = False,
    accumulation_steps: int = 1,
    fsdp: int = 1,
    reduce_dtype: str = "float32",
    mixing: bool = False,
    cache: pathlib.Path | None = None,
    use_cache: bool = True,
    recorded_only: bool = False,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> TpuCompilation:
    """Compiles both programs of the training step for all cores of a topology.

    Takes minutes the first time, nothing when the same step was compiled before, and a tracing of
    it when only the programs are the same: figures are kept by content (``figures_cache``,
    ``step_records``).

    XLA counts the work in a loop's body once. Gradient accumulation is such a loop, around nearly
    all of the program that takes gradients, so its operations, bytes and seconds are multiplied by
    ``accumulation_steps``; collectives are counted by how often each runs.

    Args:
        model: a name of ``list_models()``.
        image_size: side in px.
        topology: a name libtpu knows, e.g. ``v3:4x4``, 16 chips of two cores.
        batch_per_core: images a core and step.
        optimizer: a name in ``OPTIMIZERS``.
        dtype: of the computation, ``bfloat16`` or ``float32``.
        num_classes: of the classifier.
        bn_group_size: cores that share batch-norm statistics; None for all.
        remat: ``none``, ``blocks`` or ``stages``, as for ``create_model``.
        scan_blocks: likewise. Such loops are within the program: of operations, bytes and seconds
            nothing is said.
        accumulation_steps: parts of a core's batch, worked through one after the other.
        fsdp: neighbouring cores that share one copy of the state.
        reduce_dtype: in which gradients are summed, ``float32`` or ``bfloat16``.
        mixing: with Mixup and CutMix.
        cache: folder of the figures; None for ``tpu_compile`` in the user's cache.
        use_cache: False reads and writes no figures.
        recorded_only: True compiles nothing; then what was compiled of an earlier state of the code
            will do, and is ``outdated``.
        on_phase: is told what goes on, a few words at a time.

    Raises:
        UsageError: for an argument that cannot be used, where libtpu is missing, or while another
            process holds its lock.
        NotRecorded: with ``recorded_only``, for a step that was not compiled before.
        RuntimeError: where the compiler fails; its last words are in it.
    """
    for name, value in (("image_size", image_size), ("batch_per_core", batch_per_core)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    options = {
        "optimizer": optimizer,
        "dtype": dtype,
        "num_classes": num_classes,
        "bn_group_size": bn_group_size,
        "remat": remat,
        "accumulation_steps": accumulation_steps,
        "fsdp": fsdp,
        "reduce_dtype": reduce_dtype,
        "mixing": mixing,
        # Not said where it is not so: records from before are found by what was asked then.
        **({"scan_blocks": True} if scan_blocks else {}),
    }
    step = {"model": model, "image_size": image_size, "batch_per_core": batch_per_core}
    request = {"topology": topology, "arguments": step | options}
    folder = cache or cache_folder() / "tpu_compile"
    records = folder / "steps"
    report = step_records.read(records, request) if use_cache else None
    outdated = report is None and recorded_only and use_cache
    if outdated:
        report = step_records.read(records, request, of_any_code=True)
    if report is None:
        if recorded_only:
            raise NotRecorded(f"{model} at {image_size} px was not compiled for {topology} before")
        if importlib.util.find_spec("libtpu") is None:
            raise UsageError(
                "libtpu, the TPU's compiler, is missing: pip install 'effnetv2_jax[tpu]'"
            )
        check_lock()
        report = run_worker(request | {"cache": str(folder) if use_cache else None}, on_phase)
        if use_cache:
            step_records.write(records, request, report)
    return combine(report, topology=topology, options=options, outdated=outdated, **step)


def combine(report: dict[str, Any], **asked: Any) -> TpuCompilation:
    """The step's figures out of those of its programs.

    Args:
        report: of ``tpu_worker.compile_for_tpu``.
        **asked: the fields of a ``TpuCompilation`` that were asked for.
    """
    programs = {n: ProgramFigures.from_json(figures) for n, figures in report["figures"].items()}
    hbm_used = max(program.memory + report["beside"][n] for n, program in programs.items())
    refused = any(program.refused for program in programs.values())

    def total(field: str) -> float | None:
        parts = [
            (getattr(program, field), report["loop_runs"][name])
            for name, program in programs.items()
        ]
        uncounted = asked["options"].get("scan_blocks", False)
        if refused or uncounted or any(value is None for value, _ in parts):
            return None
        return sum(value * runs for value, runs in parts)

    collectives: dict[str, Collectives] = {}
    for program in programs.values():
        for kind, found in program.collectives.items():
            collectives[kind] = collectives.get(kind, Collectives()) + found
    return TpuCompilation(
        **asked,
        device_kind=report["device_kind"],
        cores=report["cores"],
        fits=not refused and hbm_used <= report["memory_limit"],
        hbm_used=hbm_used,
        hbm_limit=report["memory_limit"],
        flops=total("flops"),
        bytes_accessed=total("bytes_accessed"),
        seconds=total("seconds"),
        collectives=None if refused else collectives,
        compile_seconds=sum(program.compile_seconds for program in programs.values()),
        versions=report["versions"],
    )


def check_lock() -> None:
    """Raises UsageError while another process holds libtpu's lock: one may load it at a time.

    A file that a killed process left behind is locked by nobody, and libtpu takes it over.
    """
    if os.environ.get("ALLOW_MULTIPLE_LIBTPU_LOAD") == "1":
        return
    way_out = (
        "or set ALLOW_MULTIPLE_LIBTPU_LOAD=1, which is safe where that process opens no TPU either"
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


def run_worker(request: dict[str, Any], on_phase: Callable[[str], None]) -> dict[str, Any]:
    """Has ``tpu_worker`` compile in a process of its own; arguments of its ``compile_for_tpu``."""
    with tempfile.TemporaryFile("w+") as errors:
        worker = subprocess.Popen(
            [*WORKER, json.dumps(request)],
            # Never written to: its end tells the worker that this process is gone.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=worker_environment(),
        )
        with worker:
            try:
                assert worker.stdout
                for line in worker.stdout:
                    ((kind, value),) = json.loads(line).items()
                    if kind == "result":
                        return value
                    if kind == "error":
                        raise UsageError(value)
                    on_phase(value)
                worker.wait()
            finally:
                # It has nothing left to do, or nobody waits for it any more.
                worker.kill()
        errors.seek(0)
        last_words = errors.read().strip()[-2000:]
    raise RuntimeError(f"compiling for a TPU failed (exit code {worker.returncode}): {last_words}")


def worker_environment() -> dict[str, str]:
    """The one place for what libtpu and JAX have to find in the environment when they start."""
    environment = {
        name: value
        for name, value in os.environ.items()
        # On a TPU's own machine these describe that TPU, not the one that is compiled for.
        if not name.startswith("TPU_") or name == "TPU_LIBRARY_PATH"
    }
    return environment | {
        # JAX starts no TPU, neither one that is not there nor one that somebody uses.
        "JAX_PLATFORMS": "cpu",
        # libtpu asks the cloud's metadata server for the rest of these if it may, and complains;
        # the topology is asked for by name, whatever they say.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v3-32",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        # Meant for this machine's devices; LIBTPU_INIT_ARGS is for a TPU's.
        "XLA_FLAGS": "",
        # Seconds to compile are those of the compiler.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        # From wherever this was imported.
        "PYTHONPATH": os.pathsep.join(
            [str(pathlib.Path(__file__).resolve().parents[3]), *filter(None, sys.path)]
        ),
    }
