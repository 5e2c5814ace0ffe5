"""Made-up figures of a training step on a TPU."""

import dataclasses

from effnetv2_jax.benchmarks.timing.steps import StepSpec
from effnetv2_jax.benchmarks.tpu.collectives import Collectives
from effnetv2_jax.benchmarks.tpu.figures import ProgramFigures
from effnetv2_jax.benchmarks.tpu.records import CompiledStep

GIB = 2**30
VERSIONS = {"jax": "0.10.2", "jaxlib": "0.10.2", "libtpu": "0.0.42"}
FIGURES = ProgramFigures(
    memory=10 * GIB,
    compile_seconds=60.0,
    arguments=GIB,
    beside=GIB,
    flops=4e9,
    bytes_accessed=2e9,
    seconds=0.25,
    collectives={"all-reduce": Collectives(3, 100)},
)
UPDATE = dataclasses.replace(
    FIGURES,
    memory=2 * GIB,
    beside=0,
    seconds=0.01,
    collectives={"all-reduce": Collectives(1, 4)},
)
REFUSED = ProgramFigures(
    memory=20 * GIB, compile_seconds=60.0, beside=GIB, refused=True, memory_limit=16 * GIB
)


def record(gradients=FIGURES, *, topology="v3:4x4", batch_per_core=128, **step):
    return CompiledStep(
        step=StepSpec(**{"model": "efficientnetv2-s", "image_size": 128} | step),
        topology=topology,
        batch_per_core=batch_per_core,
        device_kind="TPU v3",
        cores=32,
        memory_limit=16 * GIB,
        gradients=gradients,
        update=UPDATE,
        versions=VERSIONS,
        made="2026-11-25T22:04:04Z",
        program="0123456789abcdef",
    )
