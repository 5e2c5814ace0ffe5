"""Times a model on the devices that are there: its training step, and its inference."""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from effnetv2_jax.benchmarks.timing.measure import (
    Timing,
    local_devices,
    measured_peak_flops,
    peak_flops,
    time_runs,
)
from effnetv2_jax.benchmarks.timing.model_step import make_model_step
from effnetv2_jax.benchmarks.tpu.figures import memory_of, refused_sizes
from effnetv2_jax.models import abstract_model, create_model, fold_batch_norm, model_info
from effnetv2_jax.models.kernels.compiler import compiler_options
from effnetv2_jax.runtime.errors import UsageError, unknown_name
from effnetv2_jax.training import mesh as meshes
from effnetv2_jax.training.state import functional

INFERENCE_DTYPES = ("bfloat16", "float16", "float32")

# A training step takes gradients by the weights and by the activations, each as much work as the
# network itself.
TRAINING_FLOPS = 3


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What a model did on the devices that are there.

    Attributes:
        model: a name of ``list_models()``.
        image_size: side in px.
        batch_size: images a run, over all devices.
        dtype: of the computation.
        fits: False where the devices' memory is too small; timing is None then.
        memory: bytes that one device needs, as its compiler has it.
        compile_seconds: tracing and compilation.
        timing: of a training step, or of an inference.
        flops: the network's own work in a run, over all devices: two a multiply-add, three times
            that in training.
        bytes_accessed: by one device in a run, as its compiler counts them.
        devices: how many there are.
    """

    model: str
    image_size: int
    batch_size: int
    dtype: str
    fits: bool
    memory: int
    compile_seconds: float
    timing: Timing | None
    flops: float
    bytes_accessed: float
    devices: int

    @property
    def images_per_second(self) -> float | None:
        """Over all devices, by the median."""
        return self.batch_size / self.timing.median if self.timing else None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation: ``flops`` over what the devices could do in the time."""
        if not self.timing:
            return None
        kind = jax.devices()[0].device_kind
        peak = peak_flops(kind) or measured_peak_flops()
        return self.flops / self.timing.median / (self.devices * peak)

    @property
    def bytes_per_image(self) -> float:
        """Moved in a device's memory for one image."""
        return self.bytes_accessed * self.devices / self.batch_size


class Prepared:
    """Something compiled that can be run again and again; ``measure`` and ``interleave`` time it.

    Args:
        facts: of the ``Measurement``, without what is found here.
        compile: gives the compiled programs.
        start: gives what does one run; called once, where the memory suffices.
        devices: that do it.
    """

    def __init__(
        self,
        facts: dict[str, Any],
        compile: Callable[[], list[jax.stages.Compiled]],
        start: Callable[[list[jax.stages.Compiled]], Callable[[], Any]],
        *,
        devices: int,
    ):
        started = time.perf_counter()
        self._programs, self._memory = _compile(compile)
        self.compile_seconds = time.perf_counter() - started
        self._facts = facts | {"devices": devices}
        self._run: Callable[[], Any] | None = None
        if self._programs and self._memory <= _memory_limit():
            try:
                self._run = start(self._programs)
                jax.block_until_ready(self._run())
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                self._run = None

    @property
    def run(self) -> Callable[[], Any] | None:
        """Does it once; None where the memory is too small."""
        return self._run

    def result(self, timing: Timing | None) -> Measurement:
        """With the times that were taken of ``run``."""
        costs: list[dict[str, float]] = [
            program.cost_analysis() or {} for program in self._programs
        ]
        return Measurement(
            **self._facts,
            fits=self._run is not None,
            memory=self._memory,
            compile_seconds=self.compile_seconds,
            timing=timing,
            bytes_accessed=sum(cost.get("bytes accessed", 0.0) for cost in costs),
        )


def measure(prepared: Prepared, *, repeats: int = 5) -> Measurement:
    """Times what is prepared; what does not fit is a result as well."""
    if prepared.run is None:
        return prepared.result(None)
    return prepared.result(time_runs(prepared.run, repeats=repeats))


def prepare_train_step(
    model: str,
    *,
    image_size: int,
    batch_size: int,
    dtype: str = "float32",
    optimizer: str = "rmsprop",
    num_classes: int = 1000,
    bn_group_size: int | None = None,
) -> Prepared:
    """Compiles a training step, on noise, for all devices; its state is donated to every step.

    Args:
        model: a name of ``list_models()``.
        image_size: side in px.
        batch_size: images a step, over all devices.
        dtype: of the computation, ``bfloat16`` or ``float32``.
        optimizer: a name in ``OPTIMIZERS``.
        num_classes: of the classifier.
        bn_group_size: devices that share batch-norm statistics; None for all.

    Raises:
        UsageError: for the first argument that cannot be used.
    """
    info = model_info(model, num_classes=num_classes, image_size=image_size)
    step = make_model_step(
        local_devices(),
        model=model,
        image_size=image_size,
        optimizer=optimizer,
        dtype=dtype,
        num_classes=num_classes,
        bn_group_size=bn_group_size,
    )
    meshes.check_batch_size("batch_size", batch_size, step.mesh)
    batch, scalars = step.batch(batch_size), step.scalars()

    def compile() -> list[jax.stages.Compiled]:
        return step.compile(meshes.abstract(batch))

    def start(programs: list[jax.stages.Compiled]) -> Callable[[], Any]:
        take_gradients, update = programs
        state = step.state()

        def run():
            nonlocal state
            gradients, batch_stats, metrics = take_gradients(
                state.params, state.batch_stats, state.step, batch, scalars
            )
            state = update(state, gradients, batch_stats, metrics["finite"])
            return state, metrics

        return run

    facts = {"model": model, "image_size": image_size, "batch_size": batch_size, "dtype": dtype}
    return Prepared(
        facts | {"flops": 2 * TRAINING_FLOPS * info.multiply_adds * batch_size},
        compile,
        start,
        devices=step.mesh.size,
    )


def prepare_inference(
    model: str, *, image_size: int, batch_size: int, dtype: str = "float32", num_classes: int = 1000
) -> Prepared:
    """Compiles a network for inference on normalised noise, for the first device.

    Its batch norm is folded into the convolutions, as whoever serves a network would have it.

    Args:
        model: a name of ``list_models()``.
        image_size: side in px.
        batch_size: images a run.
        dtype: of parameters and computation: ``bfloat16``, ``float16`` or ``float32``.
        num_classes: of the classifier.

    Raises:
        UsageError: for the first argument that cannot be used.
    """
    if dtype not in INFERENCE_DTYPES:
        raise unknown_name("dtype", dtype, INFERENCE_DTYPES)
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}")
    info = model_info(model, num_classes=num_classes, image_size=image_size)
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "dtype": jnp.dtype(dtype),
        "eval_size": image_size,
    }
    shapes = nnx.eval_shape(fold_batch_norm, abstract_model(model, **options))
    apply, params, batch_stats = functional(shapes)
    images = jnp.asarray(
        np.random.default_rng(0).standard_normal((batch_size, image_size, image_size, 3)), dtype
    )

    def infer(params, batch_stats, images) -> jax.Array:
        return apply(params, batch_stats, images, train=False)[0]

    def halved(params):
        # As whoever serves in half precision keeps them; vectors belong to norms and biases.
        return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, params)

    def compile() -> list[jax.stages.Compiled]:
        shapes = jax.eval_shape(halved, params)
        jitted = jax.jit(infer, compiler_options=compiler_options())
        return [jitted.lower(shapes, batch_stats, images).compile()]

    def start(programs: list[jax.stages.Compiled]) -> Callable[[], Any]:
        _, params, batch_stats = functional(fold_batch_norm(create_model(model, **options)))
        arguments = jax.jit(halved)(params), batch_stats, images
        return lambda: programs[0](*arguments)

    facts = {"model": model, "image_size": image_size, "batch_size": batch_size, "dtype": dtype}
    return Prepared(
        facts | {"flops": 2 * info.multiply_adds * batch_size},
        compile,
        start,
        devices=1,
    )


def _compile(
    compile: Callable[[], list[jax.stages.Compiled]],
) -> tuple[list[jax.stages.Compiled], int]:
    """The programs and the bytes that the largest needs; none where the compiler refuses."""
    try:
        programs = compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = refused_sizes(str(error))
        if sizes is None:
            raise
        return [], sizes[0]
    return programs, max(memory_of(program) for program in programs)


def _memory_limit() -> int:
    """Bytes of a device; of a CPU, what the machine has."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
