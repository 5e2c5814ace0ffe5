"""Our training step and our inference as a contender; run by ``worker``."""

from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax

from effnetv2_jax.benchmarks.timing.measure import device_name
from effnetv2_jax.benchmarks.timing.timed_model import (
    Prepared,
    prepare_inference,
    prepare_train_step,
)

PREPARE: dict[str, Callable[..., Prepared]] = {
    "training": prepare_train_step,
    "inference": prepare_inference,
}


def facts() -> dict[str, Any]:
    """What runs it."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": f"{jax.device_count()} × {device_name(device)}",
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")},
    }


def prepare(
    what: str, *, model: str, image_size: int, batch_size: int, dtype: str, threads: int
) -> dict[str, Callable[[], Callable[[int], None]]]:
    """Ways of running it: what prepares each, and gives what does some steps and waits for them."""

    def make() -> Callable[[int], None]:
        run = PREPARE[what](model, image_size=image_size, batch_size=batch_size, dtype=dtype).run
        if run is None:
            raise MemoryError("it does not fit into the device's memory")

        def steps(number: int) -> None:
            for _ in range(number):
                result = run()
            jax.block_until_ready(result)

        return steps

    return {"jax.jit": make}
