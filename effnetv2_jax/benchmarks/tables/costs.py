"""The cost of a training step or an inference: measured here, or estimated for absent TPUs.

The tables ask both the same questions. "It does not fit" and "it would take too long" are answers
too.
"""

import dataclasses
import functools
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from effnetv2_jax.benchmarks.timing.measure import (
    device_name,
    local_devices,
    measured_peak_flops,
    peak_flops,
    time_runs,
)
from effnetv2_jax.benchmarks.timing.steps import StepSpec
from effnetv2_jax.benchmarks.timing.timed_model import (
    TRAINING_FLOPS,
    CompiledModel,
    compile_inference,
)
from effnetv2_jax.benchmarks.timing.timed_model import compile_train_step as compile_here
from effnetv2_jax.benchmarks.tpu.compile import compile_train_step, recorded_step
from effnetv2_jax.benchmarks.tpu.records import CompiledStep
from effnetv2_jax.models import model_info
from effnetv2_jax.runtime.errors import UsageError

EXACT = "exact"
ESTIMATE = "XLA estimate for TPU {}"
MEASURED = "measured here ({})"
NOT_RUN = "not run"

LOCAL = "local"

BN_GROUP_SIZE = 8
"""The number of cores that share batch norm's statistics; our recipes have 8 of 32."""

# The share of its peak that a CPU reaches at such networks, to tell minutes from hours beforehand.
_CPU_EFFICIENCY = 0.25


@dataclasses.dataclass(frozen=True)
class Ours:
    """A figure of ours.

    Attributes:
        value: The figure in the section's unit, or ``OUT_OF_MEMORY``. None if it was not run.
        how: The way it was found: ``EXACT``, ``NOT_RUN``, or one of the others filled in.
        detail: The image size, the dtype and the batch.
        notes: Facts that one needs to read it, or the reason why it was not run.
        low: The lowest of a measurement's repeats, in the section's unit.
        high: The highest of a measurement's repeats, in the section's unit.
    """

    value: float | str | None
    how: str
    detail: str = ""
    notes: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None


def not_run(reason: str) -> Ours:
    """Returns the figure of something that was not run."""
    return Ours(None, NOT_RUN, notes=(reason,))


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one run of something.

    Attributes:
        how: The way it was found, as in ``Ours``.
        batch_size: The number of images per device and run.
        seconds: The time of a run. None if it was not run or, with another ``how``, does not fit.
        detail: The dtype, the batch and the MFU.
        note: A fact that one needs to read it, or the reason why it was not run.
        low: The seconds of the fastest repeat, if it was measured.
        high: The seconds of the slowest repeat, if it was measured.
    """

    how: str
    batch_size: int
    seconds: float | None = None
    detail: str = ""
    note: str = ""
    low: float | None = None
    high: float | None = None


class TpuCosts:
    """Costs by the TPU's compiler, for chips that are not attached.

    Args:
        topology: A name that libtpu knows.
        compile_new: Compiles what was not compiled before. Without libtpu, nothing is compiled.
        records_file: The file of the user's records, as for ``compile_train_step``.
        on_phase: Is told what goes on.
    """

    def __init__(
        self,
        topology: str,
        *,
        compile_new: bool = True,
        records_file: pathlib.Path | None = None,
        on_phase: Callable[[str], None] = lambda phase: None,
    ):
        self.name = f"tpu:{topology}"
        self.inference_dtypes: tuple[str, ...] = ("float16",)
        self._topology = topology
        self._records_file = records_file
        self._why_not = ""
        if not compile_new:
            self._why_not = "was not compiled for this TPU before"
        elif importlib.util.find_spec("libtpu") is None:
            self._why_not = "its compiler, libtpu, is missing: pip install 'effnetv2_jax[tpu]'"
        self._on_phase = on_phase
        self.train_step = functools.cache(self._train_step)

    def _train_step(
        self, model: str, *, image_size: int, batch_size: int, parts: int = 1, mixing: bool = False
    ) -> Cost:
        """Returns the cost of a step whose batch is worked through in so many parts."""
        step = StepSpec(
            model, image_size, bn_group_size=BN_GROUP_SIZE, accumulation_steps=parts, mixing=mixing
        )
        asked: dict[str, Any] = {
            "topology": self._topology,
            "batch_per_core": batch_size,
            "records_file": self._records_file,
        }
        if self._why_not:
            known = recorded_step(step, **asked)
            return cost_on_tpu(known) if known else Cost(NOT_RUN, batch_size, note=self._why_not)
        try:
            return cost_on_tpu(compile_train_step(step, **asked, on_phase=self._on_phase))
        except RuntimeError as error:
            return Cost(NOT_RUN, batch_size, note=f"the compiler failed: {str(error)[-200:]}")

    def inference(self, model: str, *, image_size: int, batch_size: int, dtype: str) -> Cost:
        return Cost(NOT_RUN, batch_size, note="inference is measured only (--device=local)")


def cost_on_tpu(found: CompiledStep) -> Cost:
    """Returns the cost of a step that was compiled, with its versions and age as a note."""
    if found.fits and found.seconds is None:
        return Cost(NOT_RUN, found.batch_per_core, note="XLA makes no estimate for this chip")
    how = ESTIMATE.format(found.topology.partition(":")[0])
    versions = (f"{name} {version}" for name, version in found.versions.items())
    note = ", ".join(filter(None, [*versions, found.remark]))
    detail = f"{found.step.dtype}, batch {found.batch_per_core}"
    seconds = found.seconds if found.fits else None
    return Cost(how, found.batch_per_core, seconds, detail, note)


class LocalCosts:
    """Costs that are measured on the devices of this machine, by the median of some runs.

    Args:
        batch_size: The number of images per device, instead of what is asked for.
        dtype: The dtype of training. None means bfloat16, and float32 on a CPU.
        inference_dtypes: The dtypes of inference. Empty means what suits the device.
        repeats: The number of runs that are timed.
        row_seconds: The estimated seconds above which a CPU runs nothing. 0 means no limit.
        on_phase: Is told what goes on.
    """

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        dtype: str | None = None,
        inference_dtypes: tuple[str, ...] = (),
        repeats: int = 5,
        row_seconds: float = 0.0,
        on_phase: Callable[[str], None] = lambda phase: None,
    ):
        self._device = local_devices()[0]
        half = {"cpu": (), "gpu": ("float16",)}.get(self._device.platform, ("bfloat16",))
        self.name = LOCAL
        self.inference_dtypes: tuple[str, ...] = inference_dtypes or (*half, "float32")
        self._dtype = dtype or ("bfloat16" if half else "float32")
        self._batch_size = batch_size
        self._repeats = repeats
        self._row_seconds = row_seconds
        self._on_phase = on_phase
        self.train_step = functools.cache(self._train_step)
        self.inference = functools.cache(self._inference)

    def _train_step(
        self, model: str, *, image_size: int, batch_size: int, parts: int = 1, mixing: bool = False
    ) -> Cost:
        # Parts are worked through one after the other, and mixing an image costs next to nothing.
        batch_size = min(self._batch_size or batch_size, batch_size // parts)
        devices = jax.device_count()
        step = StepSpec(
            model, image_size, dtype=self._dtype, bn_group_size=min(BN_GROUP_SIZE, devices)
        )
        return self._timed(
            lambda: compile_here(step, batch_size=batch_size * devices),
            batch_size,
            self._dtype,
            TRAINING_FLOPS * batch_size * model_info(model, image_size=image_size).multiply_adds,
        )

    def _inference(self, model: str, *, image_size: int, batch_size: int, dtype: str) -> Cost:
        batch_size = self._batch_size or batch_size
        return self._timed(
            lambda: compile_inference(
                model, image_size=image_size, batch_size=batch_size, dtype=dtype
            ),
            batch_size,
            dtype,
            batch_size * model_info(model, image_size=image_size).multiply_adds,
        )

    def _timed(
        self, compile: Callable[[], CompiledModel], batch_size: int, dtype: str, multiply_adds: int
    ) -> Cost:
        on_cpu = self._device.platform == "cpu"
        if on_cpu and self._row_seconds:
            runs = self._repeats + 3
            seconds = runs * 2 * multiply_adds / (_CPU_EFFICIENCY * measured_peak_flops())
            if seconds > self._row_seconds:
                limit = f"the {self._row_seconds:g} s of --row_seconds"
                return Cost(NOT_RUN, batch_size, note=f"would take more than {limit} here")
        self._on_phase("compiling")
        compiled = compile()
        how = MEASURED.format("CPU" if on_cpu else device_name(self._device))
        detail = f"{dtype}, batch {batch_size}"
        if compiled.run is None:
            return Cost(how, batch_size, None, detail)
        self._on_phase("timing")
        timing = time_runs(compiled.run, repeats=self._repeats)
        if peak_flops(self._device.device_kind):
            detail += f", MFU {100 * compiled.mfu(timing):.0f} %"
        return Cost(how, batch_size, timing.median, detail, low=timing.low, high=timing.high)


Costs = TpuCosts | LocalCosts


def topology_of(device: str) -> str | None:
    """Returns the topology that ``--device`` names after ``tpu:``, or None for ``local``.

    Raises:
        UsageError: For another device.
    """
    if device == LOCAL:
        return None
    kind, _, topology = device.partition(":")
    if kind != "tpu" or not topology:
        raise UsageError(
            f"device must be local, or tpu: and a topology as in tpu:v3:4x4, got {device!r}"
        )
    return topology
