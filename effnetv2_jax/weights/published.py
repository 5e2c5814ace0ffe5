"""Names and addresses of weights, such as ``efficientnetv2-s/imagenet21k-ft1k``, and their files.

A file that is not here is fetched (``fetch.py``) into the folder of weights.
"""

import dataclasses
import difflib
import fnmatch
import hashlib
import json
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from effnetv2_jax.models.registry import family_of, get_spec
from effnetv2_jax.runtime.errors import UsageError, unknown_name
from effnetv2_jax.runtime.files import cache_folder
from effnetv2_jax.weights import timm
from effnetv2_jax.weights.containers.files import IN_REPOSITORIES, open_tensors
from effnetv2_jax.weights.fetch import Absent, fetch, hub

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

# Other addresses of the same files are known too, as they have the beginning of a sum.
_BY_FILE = {published.file: published for published in PUBLISHED.values() if published.sha256}
_BY_URL = {published.url: name for name, published in PUBLISHED.items()}

# timm's weights are repositories of its own on the Hugging Face Hub, each named as the network.
_TIMM = "timm/"
_UNTRAINED = "untrained"

_HUB = re.compile(
    r"hf://(?P<owner>\w[\w.-]*)/(?P<repository>\w[\w.-]*)(@(?P<revision>[^/]+))?(/(?P<file>.+))?"
)


def list_pretrained(pattern: str = "*") -> list[str]:
    """Returns the sorted names of published weights that match a shell pattern.

    >>> list_pretrained("efficientnetv2-xl/*")
    ['efficientnetv2-xl/imagenet21k', 'efficientnetv2-xl/imagenet21k-ft1k']

    Names that begin with ``timm/`` are of repositories on the Hugging Face Hub.

    Args:
        pattern: The pattern, in which ``*`` stands for any text.
    """
    return sorted(fnmatch.filter([*PUBLISHED, *_of_timm()], pattern))


def _of_timm() -> list[str]:
    tags = timm.networks().items()
    return [f"{_TIMM}{x}.{tag}" for x, of in tags for tag in of if tag != _UNTRAINED]


def find_pretrained(model: str, pretrained: str | bool) -> str:
    """Returns the weights that ``create_model(model, pretrained=...)`` means.

    Args:
        model: The name of a model.
        pretrained: True for the weights that timm takes for this network; the second part of a
            name in ``PUBLISHED``, for example ``imagenet21k-ft1k``; or any path, name or address.

    Raises:
        UsageError: If the model is unknown, or timm has no weights of it.
    """
    if isinstance(pretrained, str):
        name = f"{model}/{pretrained}"
        return name if name in PUBLISHED else pretrained
    spec = get_spec(model)
    family = family_of(spec)
    theirs = next(x for x in family.names if x.library == "timm").their_model(spec)
    tag = next(iter(timm.networks().get(theirs or "", [_UNTRAINED])))
    if tag == _UNTRAINED:
        raise UsageError(
            f"pretrained=True: timm has no weights of {model}; name a file or an address, or "
            "another model"
        )
    return f"{_TIMM}{theirs}.{tag}"


def weights_folder() -> pathlib.Path:
    """Returns ``$EFFNETV2_JAX_WEIGHTS``, by default ``weights`` in the package's cache folder."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return pathlib.Path(folder).expanduser() if folder else cache_folder() / "weights"


def resolve(path_or_name: str) -> tuple[pathlib.Path, Published | None]:
    """Finds weights, and fetches them if they are not on this machine.

    Args:
        path_or_name: A file, a folder, the prefix of a TensorFlow checkpoint; a name in
            ``list_pretrained()``; or an address: ``https://…``, ``hf://OWNER/REPOSITORY`` or
            ``hf://OWNER/REPOSITORY@REVISION/FILE``.

    Returns:
        The path of a file or folder, and the entry of ``PUBLISHED`` if it is one of these files.

    Raises:
        UsageError: If there is none of these, or the file cannot be fetched, or is not the one that
            was published.
    """
    path = pathlib.Path(os.path.expanduser(path_or_name))
    if path.exists() or path.with_name(f"{path.name}.index").exists():
        return path, _BY_FILE.get(path.name)
    name = _BY_URL.get(path_or_name, path_or_name)
    if published := PUBLISHED.get(name):
        path = weights_folder() / name / published.file
        fetch(published.url, path, sha256=published.sha256, check=_check_weights)
        return path, published
    if name.startswith("https://"):
        path = _place_of(name)
        fetch(name, path, check=_check_weights)
        return path, _BY_FILE.get(path.name)
    if hub_name := _HUB.fullmatch(name):
        return _from_hub(**hub_name.groupdict()), None
    if "://" in name:
        raise UsageError(
            f"weights {name!r}: only https://… and hf://OWNER/REPOSITORY can be fetched"
        )
    if name.startswith(_TIMM) and (known := _default_tag(name.removeprefix(_TIMM))):
        return _from_hub("timm", known), None
    raise _unknown(name)


def _default_tag(name: str) -> str | None:
    """Returns timm's full name of a network, with the tag that timm takes if there is none."""
    known = timm.find(name)
    if known and "." not in known:
        known = f"{known}.{next(iter(timm.networks()[known]))}"
    return None if known is None or known.endswith(f".{_UNTRAINED}") else known


def _unknown(name: str) -> UsageError:
    model, _, kind = name.partition("/")
    kinds = [x for x in PUBLISHED if x.startswith(f"{model}/")]
    if kinds and kind:
        return unknown_name("weights", name, kinds)
    near = kinds or difflib.get_close_matches(name, list_pretrained(), n=5, cutoff=0.5)
    hint = f": did you mean {' or '.join(near)}?" if near else " such as efficientnetv2-s/imagenet"
    return UsageError(
        f"weights {name!r} are neither a file or folder nor an address nor a published name{hint}"
    )


def _place_of(url: str) -> pathlib.Path:
    """Returns the place of an address's file, which keeps its own name: it may say what it is."""
    match = re.fullmatch(r"https://(?P<host>[\w.-]+)(:\d+)?/([^?#]*/)?(?P<file>[^?#/]+).*", url)
    name = urllib.parse.unquote(match["file"]) if match else ""
    if not match or not re.fullmatch(r"(?!\.)[^\x00-\x1f/\\]{1,150}", name):
        raise UsageError(f"{url!r} must be the address of a file, such as https://HOST/NAME.pth")
    folder = hashlib.sha256(url.encode()).hexdigest()[:16]
    return weights_folder() / "https" / match["host"] / folder / name


def _from_hub(
    owner: str, repository: str, revision: str | None = None, file: str | None = None
) -> pathlib.Path:
    """Fetches a repository's weights and its ``config.json``, and returns the file or folder."""
    if file and not all(re.fullmatch(r"(?!\.)[\w .+=@-]{1,150}", x) for x in file.split("/")):
        raise UsageError(f"{file!r} is no file of hf://{owner}/{repository}")
    revision = urllib.parse.quote(revision or "main", safe="")
    # The folder has the repository's name, which may be timm's of the network.
    folder = weights_folder() / "hf" / owner / revision / repository
    names = (file,) if file else IN_REPOSITORIES
    beside = str(pathlib.PurePosixPath(names[0]).with_name("config.json"))
    # The weights are fetched last: if they are here, all is.
    here = [name for name in names if (folder / name).is_file()]
    for name in here[:1] or (beside, *names):
        url = f"{hub()}/{owner}/{repository}/resolve/{revision}/{urllib.parse.quote(name)}"
        try:
            fetch(url, folder / name, check=_check_json if name == beside else _check_weights)
        except Absent:
            continue
        if name in names:
            return folder / name if file else folder
    raise UsageError(f"hf://{owner}/{repository} at {revision} has no {' or '.join(names)}")


def _check_weights(path: pathlib.Path) -> None:
    with open_tensors(path):
        pass


def _check_json(path: pathlib.Path) -> None:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"it is no JSON: {error}") from error
