"""An export or a check as a person asks for it: the program ``export`` without its flags."""

from collections.abc import Callable

from effnetv2_jax.exporting import photographs
from effnetv2_jax.exporting.artefact import check_request, export_model
from effnetv2_jax.exporting.check import Comparison, check
from effnetv2_jax.exporting.formats import FORMATS, NONE
from effnetv2_jax.exporting.manifest import Manifest, read_manifest
from effnetv2_jax.models import Network
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime import extras
from effnetv2_jax.runtime.files import local_path
from effnetv2_jax.weights import Loaded
from effnetv2_jax.weights.description import Description


def answer(
    *,
    load_model: Callable[[], tuple[Network, Loaded]],
    to: str,
    output: str | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    preprocess: bool = False,
    quantize: str = NONE,
    images: str | None = None,
) -> None:
    """Exports a network and prints what was written.

    Args:
        load_model: A function that returns the network and a description of it.
        output: The new folder. None takes the names of the model and the format.
        to, image_size, batch_size, preprocess, quantize, images: As for ``export_model``.

    Raises:
        UsageError: As ``export_model``.
    """
    check_request(to, quantize, images)
    model, loaded = load_model()
    print(loaded)
    output = output or f"{loaded.spec.name}-{to}"
    manifest, comparison = export_model(
        model,
        loaded,
        to=to,
        output=output,
        image_size=image_size,
        batch_size=batch_size,
        preprocess=preprocess,
        quantize=quantize,
        images=images,
    )
    print(_described(output, manifest, comparison))


def check_again(folder: str, images: str | None = None) -> None:
    """Compares what lies in a folder, and prints the result.

    Args:
        folder: The folder of an export.
        images: A folder of photographs. None compares on noise.

    Raises:
        UsageError: As ``check``, and if a package is missing.
    """
    path = local_path(folder)
    manifest = read_manifest(path)
    extras.need("export", f"the check of {manifest.format}", FORMATS[manifest.format].modules)
    photos = None
    if images:
        family = Description.from_json(manifest.description).spec.preprocessing
        photos = photographs.read(
            images, image_size=manifest.image_size, preprocessing=get_preprocessing(family)
        )
    print(_described(folder, manifest, check(path, photos)))


def _described(folder: str, manifest: Manifest, comparison: Comparison) -> str:
    path = local_path(folder) / manifest.file
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    megabytes = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
    batch = manifest.batch_size or "any number of"
    noun = "image" if batch == 1 else "images"
    of_kind = "" if manifest.quantize == NONE else f"{manifest.quantize}, "
    return (
        f"{folder}/{manifest.file}: {megabytes:.1f} MB, {of_kind}takes {batch} "
        f"{manifest.images['dtype']} {noun} of {manifest.image_size} px\n"
        f"by {FORMATS[manifest.format].runtime} without this package: {comparison}"
    )
