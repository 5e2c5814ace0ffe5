"""The description beside an artefact, ``model.json``: what it is, what it takes, who wrote it."""

import dataclasses
import json
import pathlib
from typing import Any

from effnetv2_jax.exporting.formats import FORMATS
from effnetv2_jax.runtime.errors import UsageError, unknown_name
from effnetv2_jax.weights.description import KEY, Description

LAYOUT = 1
"""The version of the layout of an artefact's folder. A change that old code misreads raises it."""

MANIFEST_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of an artefact's folder.

    Attributes:
        format: The format, a name in ``formats.FORMATS``.
        file: The artefact's name in the folder.
        images: ``dtype`` and ``shape`` of the images; a batch size of None means any.
        quantize: The artefact's numbers, a name in ``formats.QUANTIZATIONS``.
        versions: The versions of the libraries that wrote it.
        description: The network, in JSON as beside weights (``weights.description``).
    """

    format: str
    file: str
    images: dict[str, Any]
    quantize: str
    versions: dict[str, str]
    description: str

    @property
    def image_size(self) -> int:
        """The side of the images in px."""
        return self.images["shape"][1]

    @property
    def batch_size(self) -> int | None:
        """The number of images per call; None for any number."""
        return self.images["shape"][0]

    @property
    def written_by(self) -> str:
        """The libraries that wrote it with their versions, for people."""
        return ", ".join(f"{name} {version}" for name, version in self.versions.items())

    def to_json(self) -> str:
        """Returns the text of ``model.json``."""
        fields = dataclasses.asdict(self) | {"layout": LAYOUT}
        fields[KEY] = json.loads(fields.pop("description"))
        return json.dumps(fields, indent=2) + "\n"


def read_manifest(folder: pathlib.Path) -> Manifest:
    """Reads the manifest of an artefact's folder.

    Raises:
        UsageError: If the folder has none, or one that this version does not know.
    """
    path = folder / MANIFEST_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        layout = fields.pop("layout")
    except (OSError, ValueError, LookupError, AttributeError) as error:
        raise UsageError(
            f"{str(folder)!r} holds no exported network: {MANIFEST_FILE} is missing or broken there"
        ) from error
    if layout != LAYOUT:
        raise UsageError(
            f"{str(path)!r} has layout {layout!r}, but this version of effnetv2_jax reads layout "
            f"{LAYOUT}: export the network again"
        )
    try:
        description = json.dumps(fields.pop(KEY))
        Description.from_json(description)
        manifest = Manifest(**fields, description=description)
        int(manifest.image_size)
        if manifest.format not in FORMATS:
            raise unknown_name("format", manifest.format, FORMATS)
        return manifest
    except (TypeError, ValueError, LookupError) as error:
        raise UsageError(f"{str(path)!r} is broken: {error}") from error
