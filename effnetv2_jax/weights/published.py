"""Names of published weights, such as ``efficientnetv2-s/imagenet21k-ft1k``.

Nothing is downloaded. If a file is missing, the error gives the address to fetch it from.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from effnetv2_jax.runtime.errors import UsageError, unknown_name
from effnetv2_jax.runtime.files import cache_folder

FOLDER_VARIABLE = "EFFNETV2_JAX_WEIGHTS"


@dataclasses.dataclass(frozen=True)
class Published:
    """A file that somebody published.

    Attributes:
        model: Our name of the network.
        url: The file's address.
        sha256: The beginning of its SHA-256 in hexadecimal digits; empty if unknown.
        changes: The fields of the spec in which its network differs from ours.
    """

    model: str
    url: str
    sha256: str = ""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def file(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


_GOOGLE = "https://storage.googleapis.com/cloud-tpu-checkpoints/efficientnet"
_PYTORCH = "https://download.pytorch.org/models"
_FACEBOOK = "https://dl.fbaipublicfiles.com/deit"
_ADVPROP = {"preprocessing": "advprop"}

# torchvision's second weights are evaluated at 240 px of 255, bilinearly.
_CHANGES = {
    "efficientnet-b1/torchvision-v2": {"preprocessing": "torch,interpolation=bilinear,crop=0.94"}
}

# The names of these files end with the beginning of their SHA-256.
_WITH_SUM = {
    "efficientnet-b0/torchvision": f"{_PYTORCH}/efficientnet_b0_rwightman-7f5810bc.pth",
    "efficientnet-b1/torchvision": f"{_PYTORCH}/efficientnet_b1_rwightman-bac287d4.pth",
    "efficientnet-b1/torchvision-v2": f"{_PYTORCH}/efficientnet_b1-c27df63c.pth",
    "efficientnet-b2/torchvision": f"{_PYTORCH}/efficientnet_b2_rwightman-c35c1473.pth",
    "efficientnet-b3/torchvision": f"{_PYTORCH}/efficientnet_b3_rwightman-b3899882.pth",
    "efficientnet-b4/torchvision": f"{_PYTORCH}/efficientnet_b4_rwightman-23ab8bcd.pth",
    "efficientnet-b5/torchvision": f"{_PYTORCH}/efficientnet_b5_lukemelas-1a07897c.pth",
    "efficientnet-b6/torchvision": f"{_PYTORCH}/efficientnet_b6_lukemelas-24a108a5.pth",
    "efficientnet-b7/torchvision": f"{_PYTORCH}/efficientnet_b7_lukemelas-c5b4e57e.pth",
    "efficientnetv2-s/torchvision": f"{_PYTORCH}/efficientnet_v2_s-dd5fe13b.pth",
    "efficientnetv2-m/torchvision": f"{_PYTORCH}/efficientnet_v2_m-dc08266a.pth",
    "efficientnetv2-l/torchvision": f"{_PYTORCH}/efficientnet_v2_l-59c71312.pth",
    "deit-ti/imagenet": f"{_FACEBOOK}/deit_tiny_patch16_224-a1311bcf.pth",
    "deit-s/imagenet": f"{_FACEBOOK}/deit_small_patch16_224-cd65a155.pth",
    "deit-b/imagenet": f"{_FACEBOOK}/deit_base_patch16_224-b5f2ef4d.pth",
    "deit-b-384/imagenet": f"{_FACEBOOK}/deit_base_patch16_384-8de9b5d1.pth",
}


def _all() -> Iterator[tuple[str, Published]]:
    for size in ("b0", "b1", "b2", "b3", "s", "m", "l", "xl"):
        model = f"efficientnetv2-{size}"
        for name, ending in (
            ("imagenet", ""),
            ("imagenet21k", "-21k"),
            ("imagenet21k-ft1k", "-21k-ft1k"),
        ):
            if (size, name) != ("xl", "imagenet"):
                yield f"{model}/{name}", Published(model, f"{_GOOGLE}/v2/{model}{ending}.tgz")
    for i in range(9):
        model = f"efficientnet-b{i}"
        file = f"{model}.tar.gz"
        yield f"{model}/advprop", Published(model, f"{_GOOGLE}/advprop/{file}", changes=_ADVPROP)
        if i < 8:
            student = f"{_GOOGLE}/noisystudent/noisy_student_{file}"
            yield f"{model}/noisy-student", Published(model, student)
            yield f"{model}/autoaugment", Published(model, f"{_GOOGLE}/ckptsaug/{file}")
    for name, pixels in (("efficientnet-l2", 800), ("efficientnet-l2_475", 475)):
        student = f"{_GOOGLE}/noisystudent/noisy_student_{name}.tar.gz"
        changes = {"eval_size": pixels}
        yield f"{name}/noisy-student", Published("efficientnet-l2", student, changes=changes)
    for i in range(5):
        model = f"efficientnet-lite{i}"
        yield f"{model}/imagenet", Published(model, f"{_GOOGLE}/lite/{model}.tar.gz")
    for name, url in _WITH_SUM.items():
        begins = pathlib.PurePosixPath(url).stem.rpartition("-")[2]
        yield name, Published(name.partition("/")[0], url, begins, _CHANGES.get(name, {}))


PUBLISHED: dict[str, Published] = dict(_all())

# The files whose names nobody else's have, as they have the beginning of a sum.
_BY_FILE = {published.file: published for published in PUBLISHED.values() if published.sha256}


def weights_folder() -> pathlib.Path:
    """Returns ``$EFFNETV2_JAX_WEIGHTS``, by default ``weights`` in the package's cache folder."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return pathlib.Path(folder).expanduser() if folder else cache_folder() / "weights"


def resolve(path_or_name: str) -> tuple[pathlib.Path, Published | None]:
    """Finds weights: a path stays as it is, a published name becomes the path of its file.

    Args:
        path_or_name: A file, a folder, the prefix of a TensorFlow checkpoint, or a name in
            ``PUBLISHED``.

    Returns:
        The path, and the entry of ``PUBLISHED`` if it is a published name or a file of one.

    Raises:
        UsageError: If there is neither, or the file is not the one that was published.
    """
    path = pathlib.Path(os.path.expanduser(path_or_name))
    if path.exists() or path.with_name(f"{path.name}.index").exists():
        return path, _BY_FILE.get(path.name)
    if path_or_name not in PUBLISHED:
        model, _, kind = path_or_name.partition("/")
        kinds = {name for name in PUBLISHED if name.startswith(f"{model}/")}
        if kinds and kind:
            raise unknown_name("weights", path_or_name, kinds)
        raise UsageError(
            f"weights {path_or_name!r} are neither a file or folder nor a published name such as "
            "'efficientnetv2-s/imagenet21k-ft1k'"
        )
    published = PUBLISHED[path_or_name]
    path = weights_folder() / path_or_name / published.file
    if not path.is_file():
        raise UsageError(
            f"the weights {path_or_name!r} are not here: fetch {published.url} and put it at {path}"
        )
    if published.sha256:
        with path.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if not found.startswith(published.sha256):
            raise UsageError(
                f"{str(path)!r} is not the file that was published: its SHA-256 is {found}, which "
                f"should begin with {published.sha256}"
            )
    return path, published
