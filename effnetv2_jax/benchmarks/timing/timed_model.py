"""Compiles a model for the devices of this machine, to time its training step or its inference."""

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
)
from effnetv2_jax.benchmarks.timing.steps import StepSpec
from effnetv2_jax.benchmarks.tpu.figures import memory_of, refused_sizes
from effnetv2_jax.models import abstract_model, create_model, fold_batch_norm, model_info
from effnetv2_jax.models.kernels.compiler import compiler_options
from effnetv2_jax.runtime.errors import UsageError, unknown_name
from effnetv2_jax.training.mesh import abstract, check_batch_size, shard_state
from effnetv2_jax.training.state import functional
from effnetv2_jax.training.step import stage_scalars

INFERENCE_DTYPES = ("bfloat16", "float16", "float32")

TRAINING_FLOPS = 3
"""A training step's work over the network's own: it also takes gradients by weights and inputs."""

Programs = list[jax.stages.Compiled]


@dataclasses.dataclass(frozen=True)
class CompiledModel:
    """Something compiled that can be run again and again.

    Attributes:
        run: Does it once. None if the memory of the devices is too small.
        memory: The bytes that one device needs, as its compiler has it.
        compile_seconds: The time that tracing and compiling took.
        flops: The network's own work in a run on all devices: two for each multiply-add, and three
            times that in training.
        bytes_accessed: The bytes that one device reads and writes in a run, as its compiler counts.
        batch_size: The number of images per run, over all devices.
        devices: The number of devices.
    """

    run: Callable[[], Any] | None
    memory: int
    compile_seconds: float
    flops: float
    bytes_accessed: float
    batch_size: int
    devices: int

    @property
    def bytes_per_image(self) -> float:
        """The bytes that are moved in a device's memory for one image."""
        return self.bytes_accessed * self.devices / self.batch_size

    def mfu(self, timing: Timing) -> float:
        """Returns the model FLOPs utilisation: ``flops`` over what the devices could do."""
        peak = peak_flops(jax.devices()[0].device_kind) or measured_peak_flops()
        return self.flops / timing.median / (self.devices * peak)


def compile_train_step(step: StepSpec, *, batch_size: int) -> CompiledModel:
    """Compiles a training step on noise for all devices. Every run donates the state to the next.

    Args:
        step: The step.
        batch_size: The number of images per step, over all devices.

    Raises:
        UsageError: For the first argument that cannot be used.
    """
    training = step.build(local_devices())
    mesh = training.mesh
    check_batch_size("batch_size", batch_size, mesh)
    batch, scalars = step.noise(batch_size, mesh), stage_scalars()

    def compile() -> Programs:
        state = training.abstract_state()
        gradients = training.train_step.lower_gradients(state, abstract(batch), scalars)
        return [gradients.compile(), training.train_step.lower_update(state).compile()]

    def start(programs: Programs) -> Callable[[], Any]:
        gradients, update = programs
        train_step = dataclasses.replace(training.train_step, gradients=gradients, update=update)
        state = shard_state(training.first_state(), mesh)

        def run():
            nonlocal state
            state, metrics = train_step(state, batch, scalars)
            return state, metrics

        return run

    info = model_info(step.model, num_classes=step.num_classes, image_size=step.image_size)
    flops = 2 * TRAINING_FLOPS * info.multiply_adds * batch_size
    return _compiled(compile, start, flops=flops, batch_size=batch_size, devices=mesh.size)


def compile_inference(
    model: str, *, image_size: int, batch_size: int, dtype: str = "float32"
) -> CompiledModel:
    """Compiles a network for inference on normalised noise, for the first device.

    Its batch norm is folded into the convolutions, as in a network that is served.

    Args:
        model: A name of ``list_models()``.
        image_size: The side of the images in px.
        batch_size: The number of images per run.
        dtype: The dtype of parameters and computation, one of ``INFERENCE_DTYPES``.

    Raises:
        UsageError: For the first argument that cannot be used.
    """
    if dtype not in INFERENCE_DTYPES:
        raise unknown_name("dtype", dtype, INFERENCE_DTYPES)
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}")
    info = model_info(model, image_size=image_size)
    options: dict[str, Any] = {"dtype": jnp.dtype(dtype), "eval_size": image_size}
    shapes = nnx.eval_shape(fold_batch_norm, abstract_model(model, **options))
    apply, params, batch_stats = functional(shapes)
    images = jnp.asarray(
        np.random.default_rng(0).standard_normal((batch_size, image_size, image_size, 3)), dtype
    )

    def infer(params, batch_stats, images) -> jax.Array:
        return apply(params, batch_stats, images, train=False)[0]

    def in_dtype(params):
        # Vectors belong to norms and biases, which stay float32.
        return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, params)

    def compile() -> Programs:
        shapes = jax.eval_shape(in_dtype, params)
        jitted = jax.jit(infer, compiler_options=compiler_options())
        return [jitted.lower(shapes, batch_stats, images).compile()]

    def start(programs: Programs) -> Callable[[], Any]:
        _, params, batch_stats = functional(fold_batch_norm(create_model(model, **options)))
        arguments = jax.jit(in_dtype)(params), batch_stats, images
        return lambda: programs[0](*arguments)

    flops = 2 * info.multiply_adds * batch_size
    return _compiled(compile, start, flops=flops, batch_size=batch_size, devices=1)


def _compiled(
    compile: Callable[[], Programs],
    start: Callable[[Programs], Callable[[], Any]],
    *,
    flops: float,
    batch_size: int,
    devices: int,
) -> CompiledModel:
    """Compiles, and runs once if the memory is large enough; ``start`` makes arrays and the run."""
    started = time.perf_counter()
    try:
        programs = compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = refused_sizes(str(error))
        if sizes is None:
            raise
        programs, memory = [], sizes[0]
    else:
        memory = max(map(memory_of, programs))
    compile_seconds = time.perf_counter() - started
    run = None
    if programs and memory <= _memory_limit():
        try:
            run = start(programs)
            jax.block_until_ready(run())
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            run = None
    costs = [program.cost_analysis() or {} for program in programs]
    accessed = sum(cost.get("bytes accessed", 0.0) for cost in costs)
    return CompiledModel(run, memory, compile_seconds, flops, accessed, batch_size, devices)


def _memory_limit() -> int:
    """Returns the bytes of the first device, or those of the machine if it is a CPU."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
