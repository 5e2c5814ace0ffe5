"""What a training step or an inference costs: on the devices that are there, or on absent TPUs.

The tables ask either of them the same questions; what does not fit, or would take too long, is an
answer.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Protocol

import jax

from effnetv2_jax.benchmarks.tables.comparison import ESTIMATE, MEASURED, NOT_RUN
from effnetv2_jax.benchmarks.timing.measure import (
    device_name,
    local_devices,
    measured_peak_flops,
    peak_flops,
)
from effnetv2_jax.benchmarks.timing.timed_model import (
    TRAINING_FLOPS,
    Measurement,
    Prepared,
    measure,
    prepare_inference,
    prepare_train_step,
)
from effnetv2_jax.benchmarks.tpu.compile import (
    NotRecorded,
    TpuCompilation,
    compile_train_step,
)
from effnetv2_jax.models import model_info
from effnetv2_jax.runtime.errors import UsageError

LOCAL = "local"

BN_GROUP_SIZE = 8
"""Cores that share batch-norm statistics, as our recipes have it on 32 cores."""

# Of its peak, what a CPU reaches at such networks: only to tell minutes from hours beforehand.
_CPU_EFFICIENCY = 0.25


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one run of something costs.

    Attributes:
        how: it was found, ``not run`` among it.
        batch_size: images a device and run.
        seconds: a run; None where it does not fit or was not run.
        fits: False where the memory is too small; None where that is not known.
        detail: what was run: dtype and batch, MFU.
        note: why it was not run, or what has to be known beside it.
        low: seconds of the fastest repeat, where it was measured.
        high: of the slowest.
    """

    how: str
    batch_size: int
    seconds: float | None = None
    fits: bool | None = None
    detail: str = ""
    note: str = ""
    low: float | None = None
    high: float | None = None


class Costs(Protocol):
    """Where costs come from."""

    @property
    def name(self) -> str:
        """As ``--device`` has it."""
        ...

    @property
    def inference_dtypes(self) -> tuple[str, ...]:
        """In which inference is asked for."""
        ...

    def train_step(
        self, model: str, *, image_size: int, batch_size: int, parts: int = 1, mixing: bool = False
    ) -> Cost:
        """Of a training step.

        Args:
            model: a name of ``list_models()``.
            image_size: side in px.
            batch_size: images a device.
            parts: of the batch, worked through one after the other.
            mixing: with Mixup and CutMix.
        """
        ...

    def inference(self, model: str, *, image_size: int, batch_size: int, dtype: str) -> Cost:
        """Of an inference on one device."""
        ...


class TpuCosts:
    """By the TPU's compiler, for chips that are not there; its estimate hardly counts collectives.

    Args:
        topology: as ``compile_train_step`` takes it.
        compile_anew: False answers only from what was compiled before, as it goes without libtpu.
        on_phase: is told what goes on.
    """

    inference_dtypes = ("float16",)

    def __init__(
        self,
        topology: str,
        *,
        compile_anew: bool = True,
        on_phase: Callable[[str], None] = lambda phase: None,
    ):
        self.name = f"tpu:{topology}"
        self._topology = topology
        self._why_not = ""
        if not compile_anew:
            self._why_not = "was not compiled for this TPU before"
        elif importlib.util.find_spec("libtpu") is None:
            self._why_not = "its compiler, libtpu, is missing: pip install 'effnetv2_jax[tpu]'"
        self._on_phase = on_phase

    def train_step(
        self, model: str, *, image_size: int, batch_size: int, parts: int = 1, mixing: bool = False
    ) -> Cost:
        try:
            found = compile_train_step(
                model,
                image_size=image_size,
                topology=self._topology,
                batch_per_core=batch_size,
                bn_group_size=BN_GROUP_SIZE,
                accumulation_steps=parts,
                mixing=mixing,
                recorded_only=bool(self._why_not),
                on_phase=self._on_phase,
            )
        except NotRecorded:
            return Cost(NOT_RUN, batch_size, note=self._why_not)
        except RuntimeError as error:
            return Cost(NOT_RUN, batch_size, note=f"the compiler failed: {str(error)[-200:]}")
        return _cost_on_tpu(found)

    def inference(self, model: str, *, image_size: int, batch_size: int, dtype: str) -> Cost:
        return Cost(NOT_RUN, batch_size, note="inference is measured only (--device=local)")


def _cost_on_tpu(found: TpuCompilation) -> Cost:
    how = ESTIMATE.format(found.topology.partition(":")[0])
    note = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    if found.outdated:
        note += ", compiled before the code of the step changed"
    if found.fits and found.seconds is None:
        note = "XLA makes no estimate for this chip"
        how = NOT_RUN
    detail = f"{found.options['dtype']}, batch {found.batch_per_core}"
    return Cost(how, found.batch_per_core, found.seconds, found.fits, detail, note)


class LocalCosts:
    """Measured on the devices that are there, by the median of some runs.

    Args:
        batch_size: images a device instead of those asked for; None for those.
        dtype: of training; None for bfloat16, and float32 on a CPU.
        inference_dtypes: None for what suits the device.
        repeats: runs that count.
        row_seconds: what would take longer is not run; only on a CPU, where hours threaten. None
            for no limit.
        on_phase: is told what goes on.
    """

    name = LOCAL

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        dtype: str | None = None,
        inference_dtypes: tuple[str, ...] | None = None,
        repeats: int = 5,
        row_seconds: float | None = None,
        on_phase: Callable[[str], None] = lambda phase: None,
    ):
        self._device = local_devices()[0]
        half = {"cpu": (), "gpu": ("float16",)}.get(self._device.platform, ("bfloat16",))
        self.inference_dtypes = inference_dtypes or (*half, "float32")
        self._dtype = dtype or ("bfloat16" if half else "float32")
        self._batch_size = batch_size
        self._repeats = repeats
        self._row_seconds = row_seconds
        self._on_phase = on_phase

    def train_step(
        self, model: str, *, image_size: int, batch_size: int, parts: int = 1, mixing: bool = False
    ) -> Cost:
        # Parts are worked through one after the other, and a mixed image costs what another does.
        batch_size = min(self._batch_size or batch_size, batch_size // parts)
        return self._timed(
            lambda: prepare_train_step(
                model,
                image_size=image_size,
                batch_size=batch_size * jax.device_count(),
                dtype=self._dtype,
                bn_group_size=min(BN_GROUP_SIZE, jax.device_count()),
            ),
            batch_size=batch_size,
            dtype=self._dtype,
            multiply_adds=TRAINING_FLOPS * batch_size * _multiply_adds(model, image_size),
        )

    def inference(self, model: str, *, image_size: int, batch_size: int, dtype: str) -> Cost:
        batch_size = self._batch_size or batch_size
        return self._timed(
            lambda: prepare_inference(
                model, image_size=image_size, batch_size=batch_size, dtype=dtype
            ),
            batch_size=batch_size,
            dtype=dtype,
            multiply_adds=batch_size * _multiply_adds(model, image_size),
        )

    def _timed(
        self, prepare: Callable[[], Prepared], *, batch_size: int, dtype: str, multiply_adds: float
    ) -> Cost:
        seconds = self._seconds_to_expect(multiply_adds)
        if self._row_seconds is not None and seconds > self._row_seconds:
            return Cost(
                NOT_RUN,
                batch_size,
                note=f"would take more than the {self._row_seconds:g} s of --row_seconds here",
            )
        self._on_phase("compiling")
        prepared = prepare()
        self._on_phase("timing")
        found = measure(prepared, repeats=self._repeats)
        return self._cost(found, batch_size=batch_size, dtype=dtype)

    def _seconds_to_expect(self, multiply_adds: float) -> float:
        if self._device.platform != "cpu":
            return 0.0
        runs = self._repeats + 3
        return runs * 2 * multiply_adds / (_CPU_EFFICIENCY * measured_peak_flops())

    def _cost(self, found: Measurement, *, batch_size: int, dtype: str) -> Cost:
        on_cpu = self._device.platform == "cpu"
        how = MEASURED.format("CPU" if on_cpu else device_name(self._device))
        detail = f"{dtype}, batch {batch_size}"
        if found.timing is None:
            return Cost(how, batch_size, None, False, detail)
        if found.mfu is not None and peak_flops(self._device.device_kind):
            detail += f", MFU {100 * found.mfu:.0f} %"
        timing = found.timing
        return Cost(how, batch_size, timing.median, True, detail, low=timing.low, high=timing.high)


def _multiply_adds(model: str, image_size: int) -> int:
    return model_info(model, image_size=image_size).multiply_adds


class Remembered:
    """Costs of which the same question is asked once."""

    def __init__(self, costs: Costs):
        self.name = costs.name
        self.inference_dtypes = costs.inference_dtypes
        self.train_step = functools.cache(costs.train_step)
        self.inference = functools.cache(costs.inference)


def topology_of(device: str) -> str | None:
    """The topology that ``--device`` names after ``tpu:``; None for ``local``.

    Raises:
        UsageError: for another device.
    """
    if device == LOCAL:
        return None
    kind, _, topology = device.partition(":")
    if kind != "tpu" or not topology:
        raise UsageError(
            f"device must be local, or tpu: and a topology as in tpu:v3:4x4, got {device!r}"
        )
    return topology
