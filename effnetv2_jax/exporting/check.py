"""Compares an artefact, run by its own runtime in a process of its own, to the network."""

import dataclasses
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from effnetv2_jax.exporting import runtimes
from effnetv2_jax.exporting.formats import NONE
from effnetv2_jax.exporting.manifest import WEIGHTS_FILE, Manifest, read_manifest
from effnetv2_jax.models import Network
from effnetv2_jax.models.kernels.compiler import compiler_options
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.workers import Worker, WorkerError
from effnetv2_jax.training.state import functional
from effnetv2_jax.training.step import normalize
from effnetv2_jax.weights import load_model

TOLERANCE = 1e-4
"""The largest difference of logits, over the largest logit if that is above 1."""

NOISE_IMAGES = 2


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        difference: The largest difference of the logits.
        images: The number of photographs that were compared; 0 if it was noise.
        agreeing: The number of photographs of which the likeliest class is the same.
    """

    difference: float
    images: int
    agreeing: int

    def __str__(self) -> str:
        """Returns a sentence for people."""
        text = f"logits differ by {self.difference:.1e} at most"
        if not self.images:
            return text
        share = 100 * self.agreeing / self.images
        return f"{text}, top-1 agrees on {self.agreeing} of {self.images} images ({share:.1f} %)"


def check(folder: pathlib.Path, images: np.ndarray | None = None) -> Comparison:
    """Compares the artefact in a folder to the network whose weights lie beside it.

    Args:
        folder: The folder.
        images: Photographs as ``photographs.read`` returns them. None compares on noise.

    Raises:
        UsageError: If the artefact or its manifest cannot be read, or if the artefact is not
            quantised and differs by more than ``TOLERANCE``.
    """
    manifest = read_manifest(folder)
    model, _ = load_model(str(folder / WEIGHTS_FILE))
    is_noise = images is None
    if images is None:
        shape = (manifest.batch_size or NOISE_IMAGES, *manifest.images["shape"][1:])
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    count = len(images)
    # A fixed batch size takes whole batches only.
    rows = np.arange(-(-count // (manifest.batch_size or 1)) * (manifest.batch_size or 1))
    images = images[np.minimum(rows, count - 1)]
    expected = _expected(model, images)[:count]
    found = _found(folder, manifest, model, images)[:count]
    comparison = Comparison(
        difference=float(np.abs(found - expected).max()),
        images=0 if is_noise else count,
        agreeing=int((found.argmax(1) == expected.argmax(1)).sum()),
    )
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    # Written so that NaN fails.
    if manifest.quantize == NONE and not comparison.difference <= allowed:
        raise UsageError(
            f"{str(folder / manifest.file)!r} does not compute what the network does: "
            f"{comparison}, but {allowed:.1e} is allowed"
        )
    return comparison


def _expected(model: Network, images: np.ndarray) -> np.ndarray:
    """Returns the logits of images, uint8 [number, size, size, 3], by the network itself."""
    family = get_preprocessing(model.spec.preprocessing)
    apply, params, batch_stats = functional(model)

    @jax.jit(compiler_options=compiler_options())
    def logits(images: jax.Array) -> jax.Array:
        images = normalize(images, family.mean, family.std)
        return apply(params, batch_stats, images, train=False)[0]

    size = min(len(images), runtimes.LARGEST_BATCH)
    batches = [images[begin : begin + size] for begin in range(0, len(images), size)]
    return np.concatenate([np.asarray(logits(batch)) for batch in batches])


def _found(
    folder: pathlib.Path, manifest: Manifest, model: Network, images: np.ndarray
) -> np.ndarray:
    """Returns the logits of images by the artefact."""
    if manifest.images["dtype"] != "uint8":
        family = get_preprocessing(model.spec.preprocessing)
        images = np.asarray(normalize(jnp.asarray(images), family.mean, family.std))
    with tempfile.TemporaryDirectory() as scratch:
        given, answered = f"{scratch}/images.npy", f"{scratch}/logits.npy"
        np.save(given, images)
        try:
            with Worker(runtimes.FILE, "Runtime", {"folder": str(folder)}) as worker:
                worker.call("run", images=given, logits=answered)
        except WorkerError as error:
            raise UsageError(
                f"{str(folder / manifest.file)!r} does not run here: {error}; it was written by "
                f"{manifest.written_by}, and can be exported again from {WEIGHTS_FILE} beside it"
            ) from error
        return np.load(answered)
