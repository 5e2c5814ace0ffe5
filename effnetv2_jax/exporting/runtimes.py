"""Runs artefacts in their own runtimes: a ``runtime.workers`` process, or a contender in a race.

Nothing here comes from this package, and no artefact needs it.
"""

import json
import os
import pathlib
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

FILE = pathlib.Path(__file__).resolve()

LARGEST_BATCH = 32
"""The number of images per call if the artefact takes any number."""

Run = Callable[[np.ndarray], np.ndarray]
"""Maps images, as the artefact takes them, to float32 [batch, classes]."""


def _stablehlo(path: str, threads: int) -> Run:
    import jax
    from jax import export

    exported = export.deserialize(bytearray(pathlib.Path(path).read_bytes()))
    # JAX itself would call a program of another convention with the wrong arguments.
    oldest = export.minimum_supported_calling_convention_version
    newest = export.maximum_supported_calling_convention_version
    if not oldest <= exported.calling_convention_version <= newest:
        raise ValueError(
            f"it has calling convention {exported.calling_convention_version}, and this jax reads "
            f"{oldest} to {newest}"
        )
    run = jax.jit(exported.call)
    return lambda images: np.asarray(run(images))


def _onnx(path: str, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]


def _tflite(path: str, threads: int) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(path, num_threads=threads).get_signature_runner()
    return lambda images: run(images=images)["logits"]


def _savedmodel(path: str, threads: int) -> Run:
    import tensorflow as tf

    model = tf.saved_model.load(path)

    def run(images: np.ndarray) -> np.ndarray:
        # The model itself is named, because a signature does not keep it alive.
        return model.signatures["serving_default"](images=tf.constant(images))["logits"].numpy()

    return run


RUNTIMES = {
    "stablehlo": _stablehlo,
    "onnx": _onnx,
    "tflite": _tflite,
    "savedmodel": _savedmodel,
}
"""A function of an artefact's path and a number of threads for each format."""


def load(folder: str, threads: int) -> tuple[dict[str, Any], Run]:
    """Returns the manifest of an artefact's folder, and the artefact as a function."""
    manifest = json.loads((pathlib.Path(folder) / "model.json").read_text(encoding="utf-8"))
    path = os.path.join(folder, manifest["file"])
    return manifest, RUNTIMES[manifest["format"]](path, threads)


class Runtime:
    """An artefact in a process of its own.

    Args:
        folder: The artefact's folder.
    """

    def __init__(self, folder: str):
        # From here on, importing it fails.
        sys.modules["effnetv2_jax"] = None  # type: ignore[assignment]
        self._manifest, self._run = load(folder, len(os.sched_getaffinity(0)))

    def run(self, images: str, logits: str) -> None:
        """Reads images, as the artefact takes them, from a .npy file and writes their logits."""
        array = np.load(images)
        size = self._manifest["images"]["shape"][0] or LARGEST_BATCH
        found = [self._run(array[begin : begin + size]) for begin in range(0, len(array), size)]
        np.save(logits, np.concatenate(found))


def facts() -> dict[str, Any]:
    """Returns the platform, the device and the versions, as a contender."""
    versions = {}
    for name in ("jax", "onnxruntime", "ai-edge-litert", "tensorflow-cpu"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"platform": "cpu", "device": "cpu", "versions": versions}


def prepare(
    what: str,
    *,
    model: str,
    image_size: int,
    batch_size: int,
    dtype: str,
    threads: int,
    folder: str,
) -> dict[str, Callable[[], Callable[[int], None]]]:
    """Returns the way of running it: a function that makes a function that runs some steps."""

    def make() -> Callable[[int], None]:
        manifest, run = load(folder, threads)
        shape = (batch_size, *manifest["images"]["shape"][1:])
        images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

        def steps(number: int) -> None:
            for _ in range(number):
                run(images)

        return steps

    return {"its runtime": make}
