"""StableHLO, by ``jax.export``: a program for CPU, CUDA and TPU in one file."""

import pathlib

import jax
from jax import export

from effnetv2_jax.exporting.program import Program

PLATFORMS = ("cpu", "cuda", "tpu")


def write(program: Program, path: pathlib.Path) -> None:
    """Writes the program; a file of ``jax.export``, which ``deserialize`` reads."""
    batch_size = program.batch_size or export.symbolic_shape("batch")[0]
    images = jax.ShapeDtypeStruct((batch_size, *program.shape[1:]), program.dtype)
    exported = export.export(jax.jit(program.logits), platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())
