"""Writes an artefact in its folder, with the weights and a description beside it."""

import contextlib
import pathlib
import shutil
import zipfile
from collections.abc import Iterator
from importlib import metadata

import numpy as np

from effnetv2_jax.exporting import photographs
from effnetv2_jax.exporting.check import Comparison, check
from effnetv2_jax.exporting.formats import FORMATS, NONE, QUANTIZATIONS, Format
from effnetv2_jax.exporting.manifest import MANIFEST_FILE, WEIGHTS_FILE, Manifest
from effnetv2_jax.exporting.program import LABELS_FILE, Program, make_program
from effnetv2_jax.models import Network
from effnetv2_jax.models.kernels.platforms import neutral_platform
from effnetv2_jax.predictions.request import class_names
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime import extras
from effnetv2_jax.runtime.errors import UsageError, reason, unknown_name
from effnetv2_jax.runtime.files import local_path, unnamed
from effnetv2_jax.weights import Loaded, save_weights
from effnetv2_jax.weights.description import Description


def check_request(to: str, quantize: str, images: str | None) -> Format:
    """Returns the format of an export, after looking for what would stop it later.

    Raises:
        UsageError: For an unknown format or quantisation, one that do not fit together, int8
            without images, and a package that is not installed.
    """
    if to not in FORMATS:
        raise unknown_name("format", to, FORMATS)
    if quantize not in QUANTIZATIONS:
        raise unknown_name("quantize", quantize, QUANTIZATIONS)
    format = FORMATS[to]
    if quantize not in format.quantizations:
        able = ", ".join(name for name, x in FORMATS.items() if quantize in x.quantizations)
        raise UsageError(f"quantize must be {NONE} for {to}, got {quantize!r}: {able} can be")
    if quantize == "int8" and not images:
        raise UsageError("quantize=int8 needs images, a folder of photographs to calibrate with")
    extras.need("export", f"an export to {to}", format.modules)
    return format


def export_model(
    model: Network,
    loaded: Loaded,
    *,
    to: str,
    output: str,
    image_size: int | None = None,
    batch_size: int | None = None,
    preprocess: bool = False,
    quantize: str = NONE,
    images: str | None = None,
) -> tuple[Manifest, Comparison]:
    """Exports a network to a new folder, which appears whole or not at all.

    The folder has the artefact, ``model.safetensors`` with the weights and ``model.json`` with what
    the artefact is. The artefact is compared to the network before the folder appears.

    Args:
        model: The network.
        loaded: The record of its weights, from ``load_model``.
        to: The format, a name in ``FORMATS``.
        output: The folder, which must not exist.
        image_size: The side of the images in px. None means the network's evaluation size.
        batch_size: The number of images per call. None means any number if the format allows it,
            else 1.
        preprocess: Takes uint8 images and normalises them.
        quantize: A name in ``QUANTIZATIONS``.
        images: A folder of photographs. The comparison is made on them. For int8, every second one
            calibrates, and the others are compared.

    Returns:
        The manifest, and the comparison of the artefact to the network.

    Raises:
        UsageError: If a value is not allowed, a package is missing, the folder exists or cannot be
            written, or the artefact does not compute what the network does.
    """
    format = check_request(to, quantize, images)
    for name, value in (("image_size", image_size), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if not loaded.num_classes:
        raise UsageError("the weights have no classifier, which an export needs")
    names = class_names(loaded.class_names, loaded.num_classes)
    program = make_program(
        model,
        class_names=names,
        image_size=image_size or loaded.spec.eval_size,
        batch_size=batch_size or (None if format.any_batch else 1),
        preprocess=preprocess,
    )
    with _new_folder(output) as folder:
        photos = calibration = None
        if images:
            photos = photographs.read(
                images,
                image_size=program.image_size,
                preprocessing=get_preprocessing(loaded.spec.preprocessing),
            )
        if quantize == "int8":
            assert photos is not None
            calibration, photos = photos[::2], photos[1::2]
        description = Description(loaded.spec, loaded.num_classes, names, loaded.origin)
        manifest = Manifest(
            format=to,
            file=format.file,
            images={"dtype": program.dtype, "shape": list(program.shape)},
            quantize=quantize,
            versions=_versions(format),
            description=description.to_json(),
        )
        (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        save_weights(model, folder / WEIGHTS_FILE, class_names=names)
        _write(program, format, folder, quantize, calibration)
        return manifest, check(folder, photos)


def _write(
    program: Program,
    format: Format,
    folder: pathlib.Path,
    quantize: str,
    calibration: np.ndarray | None,
) -> None:
    path = folder / format.file
    options = {"quantize": quantize, "calibration": calibration}
    with neutral_platform() if format.neutral else contextlib.nullcontext():
        format.write(program, path, **(options if len(format.quantizations) > 1 else {}))
    if format.appended:
        # Flatbuffers are read from their beginning and ZIP files from their end.
        with zipfile.ZipFile(path, "a") as appendix:
            appendix.writestr(LABELS_FILE, program.labels)
            appendix.write(folder / MANIFEST_FILE, MANIFEST_FILE)


def _versions(format: Format) -> dict[str, str]:
    found = metadata.packages_distributions()
    names = ["effnetv2_jax", "jax", format.runtime]
    names += [name for module in format.modules for name in found.get(module, ())]
    versions = {}
    for name in dict.fromkeys(names):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


@contextlib.contextmanager
def _new_folder(output: str) -> Iterator[pathlib.Path]:
    """Makes a folder appear whole, or not at all; yields the folder to write to."""
    path = local_path(output)
    if path.exists():
        raise UsageError(f"{str(path)!r} exists already: choose another output")
    temporary = unnamed(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(path)
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be written: {reason(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
