"""Our training step and our inference as a contender; run by ``worker``."""

from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax

from effnetv2_jax.benchmarks.timing.measure import device_name
from effnetv2_jax.benchmarks.timing.steps import StepSpec
from effnetv2_jax.benchmarks.timing.timed_model import compile_inference, compile_train_step


def facts() -> dict[str, Any]:
    """Returns the platform, the device and the versions."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": f"{jax.device_count()} × {device_name(device)}",
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")},
    }


def prepare(
    what: str, *, model: str, image_size: int, batch_size: int, dtype: str, threads: int
) -> dict[str, Callable[[], Callable[[int], None]]]:
    """Returns the ways of running it: functions that make a function that runs some steps."""

    def make() -> Callable[[int], None]:
        if what == "training":
            compiled = compile_train_step(
                StepSpec(model, image_size, dtype=dtype), batch_size=batch_size
            )
        else:
            compiled = compile_inference(
                model, image_size=image_size, batch_size=batch_size, dtype=dtype
            )
        run = compiled.run
        if run is None:
            raise MemoryError("it does not fit into the device's memory")

        def steps(number: int) -> None:
            for _ in range(number):
                result = run()
            jax.block_until_ready(result)

        return steps

    return {"jax.jit": make}
