"""The pipeline's memory over a long run."""

import resource

import numpy as np
import pytest

from effnetv2_jax.benchmarks.timing.photographs import photographs
from effnetv2_jax.data import images, pipeline
from effnetv2_jax.preprocessing import PREPROCESSING
from effnetv2_jax.progressive import Stage


def resident_megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


@pytest.mark.slow
def test_memory_stays_flat_over_10_000_batches():
    num_batches = 10_000
    stage = Stage(0, 0, num_batches, 64, 10.0, 0.0, 0.0, 0.0, 8)
    batches = pipeline.train_batches(
        photographs(120, 90),
        "train",
        stage,
        first_example=0,
        num_batches=num_batches,
        seed=0,
        preprocessing=PREPROCESSING["v2"],
        augmentation=images.Augmentation(),
    )
    memory = np.array([resident_megabytes() for _ in batches])
    assert len(memory) == num_batches
    print("MB after each thousand:", memory[999::1000].round().tolist())
    # The first thousand batches fill the allocator's pools.
    assert memory[1000:].max() < memory[1000] + 20
