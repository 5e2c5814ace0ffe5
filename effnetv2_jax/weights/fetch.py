"""A file from the network: whole, checked and under its name, or not there at all.

Everything comes over HTTP, with the standard library alone. A transfer that breaks off goes on
where it stopped, also in a later process. Processes that want the same file wait for the first one.
"""

import base64
import contextlib
import dataclasses
import fcntl
import hashlib
import http.client
import os
import pathlib
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping

from absl import logging

from effnetv2_jax import __version__
from effnetv2_jax.runtime import bars
from effnetv2_jax.runtime.errors import UsageError, reason
from effnetv2_jax.runtime.files import write_atomically

MIRROR_VARIABLE = "EFFNETV2_JAX_MIRROR"
OFFLINE_VARIABLE = "EFFNETV2_JAX_OFFLINE"
# Those of the package huggingface_hub.
ENDPOINT_VARIABLE = "HF_ENDPOINT"
TOKEN_VARIABLE = "HF_TOKEN"

_SWITCH = {"": False, "0": False, "false": False, "1": True, "true": True}
_TIMEOUT_SECONDS = 20.0
# The pauses after attempts that brought less than _ENOUGH bytes; after the last it is given up.
_PAUSES_SECONDS = (1.0, 2.0, 4.0)
_ENOUGH = 1 << 20
_CHUNK = 1 << 20
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|!--|html|head|\?xml)", re.IGNORECASE)
_PAGE_START = 512

Check = Callable[[pathlib.Path], None]


class Absent(UsageError):
    """An address at which the server has no file."""


class _BrokenOff(Exception):
    """A transfer that is worth another attempt. The message says why it ended."""


def hub() -> str:
    """Returns the address of the Hugging Face Hub, which ``HF_ENDPOINT`` may change."""
    return os.environ.get(ENDPOINT_VARIABLE, "").rstrip("/") or "https://huggingface.co"


def fetch(url: str, path: pathlib.Path, *, sha256: str = "", check: Check) -> None:
    """Makes sure that a file of the network is at a path, and is the right one.

    The SHA-256 of what was fetched is written beside it, as ``sha256sum`` writes it, into
    ``FILE.sha256``. The file must keep it, and if it is fetched again it must have the same.

    Args:
        url: The file's address. ``EFFNETV2_JAX_MIRROR`` may send it to another server.
        path: The file's place; its folder is made.
        sha256: The beginning of the published SHA-256; empty if nobody published it.
        check: Raises UsageError for a file that is not whole. It is called before the file gets its
            name, if neither the publisher nor the server says a sum.

    Raises:
        Absent: If the server says that there is no such file.
        UsageError: If the file cannot be fetched or written, or is not the one that was published
            or that was here at first; or if it is not here and ``EFFNETV2_JAX_OFFLINE`` is 1.
    """
    if not path.is_file():
        if _offline():
            raise UsageError(
                f"{str(path)!r} is not here and {OFFLINE_VARIABLE} is set: fetch {url} elsewhere "
                "and put it there"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path):
                # Another process may have fetched it meanwhile.
                if not path.is_file():
                    _download(_mirrored(url), _Part(path), sha256, check)
                    return
        except OSError as error:
            raise UsageError(f"{str(path)!r} cannot be written: {reason(error)}") from error
    expected, by = (sha256, "published") if sha256 else (_pinned(path), "fetched")
    if expected and not (found := _digest(path)).startswith(expected):
        raise UsageError(
            f"{str(path)!r} is not the file that was {by}: its SHA-256 is {found}, which should "
            f"begin with {expected}; delete it to fetch it again"
        )


@dataclasses.dataclass(frozen=True)
class _Part:
    """The beginning of a file, with which a later process can go on.

    It has a name that nobody takes for the file's. ``whole_file`` keeps nothing of what failed.

    Attributes:
        path: The place of the whole file.
    """

    path: pathlib.Path

    @property
    def data(self) -> pathlib.Path:
        """The bytes that are here."""
        return self.path.with_name(f".{self.path.name}.part")

    @property
    def version(self) -> pathlib.Path:
        """The file with the name of their version: a validator as in RFC 9110."""
        return self.path.with_name(f".{self.path.name}.version")

    @property
    def size(self) -> int:
        """The number of bytes that are here."""
        return self.data.stat().st_size if self.data.is_file() else 0

    @property
    def validator(self) -> str:
        """The name of the version to go on with; empty if the transfer must begin again."""
        return self.version.read_text() if self.size and self.version.is_file() else ""

    def begin(self, validator: str) -> None:
        """Makes it empty, for a version."""
        self.data.write_bytes(b"")
        self.version.write_text(validator)

    def finish(self) -> None:
        """Gives it the name of the whole file."""
        with self.data.open("rb") as file:
            os.fsync(file.fileno())
        self.data.replace(self.path)
        self.drop()

    def drop(self) -> None:
        """Deletes it."""
        for path in (self.data, self.version):
            path.unlink(missing_ok=True)


def _download(url: str, part: _Part, sha256: str, check: Check) -> None:
    failures = 0
    while True:
        before = part.size
        try:
            told = _transfer(url, part)
            break
        except _BrokenOff as error:
            failures = 1 if part.size - before >= _ENOUGH else failures + 1
            if failures > len(_PAUSES_SECONDS):
                raise UsageError(
                    f"{url} cannot be fetched: {error}; try again later, or fetch it elsewhere and "
                    f"put it at {part.path}"
                ) from error
            logging.warning("%s: %s; trying again", url, error)
            time.sleep(_PAUSES_SECONDS[failures - 1])
    sums = told | ({"sha256": sha256} if sha256 else {})
    try:
        _accept(url, part, sums, check)
    except UsageError:
        part.drop()
        raise


def _accept(url: str, part: _Part, sums: Mapping[str, str], check: Check) -> None:
    """Checks what was fetched, pins its sum, and gives it its name."""
    for algorithm, expected in sums.items():
        found = _digest(part.data, algorithm)
        if not found.startswith(expected):
            raise UsageError(
                f"{url} is not the file that was published: its {algorithm} is {found}, which "
                f"should begin with {expected}"
            )
    found, pin = _digest(part.data), _pin(part.path)
    if not found.startswith(_pinned(part.path)):
        raise UsageError(
            f"{url} is another file than at first: its SHA-256 is {found}, and {str(pin)!r} says "
            f"{_pinned(part.path)}; delete that if it may be another file"
        )
    if not sums:
        try:
            check(part.data)
        except UsageError as error:
            raise UsageError(f"{url} is no whole file of its kind: {error}") from error
    write_atomically(pin, f"{found}  {part.path.name}\n")
    part.finish()


def _transfer(url: str, part: _Part) -> dict[str, str]:
    """Fetches a file, or the rest of it.

    Returns:
        The sums of the whole file that the server says, {algorithm: hexadecimal digits}.

    Raises:
        _BrokenOff: If it is worth another attempt.
        OSError: If it cannot be written. Nothing is left then.
    """
    with _ask(url, part) as (answer, told):
        start = _beginning(answer, part)
        length = answer.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        chunk = _read(answer, _PAGE_START)
        if not start and _PAGE.match(chunk):
            raise UsageError(
                f"{url} is a web page instead of a file: the server may want a login, or the "
                "network a confirmation"
            )
        needed, free = (total or 0) - start, shutil.disk_usage(part.path.parent).free
        if needed > free:
            raise UsageError(
                f"{url} needs {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free at "
                f"{part.path.parent}"
            )
        if not start:
            part.begin(_validator(answer.headers))
        logging.info("fetching %s to %s", url, part.path)
        try:
            with (
                part.data.open("ab") as file,
                bars.transfer(f"fetching {part.path.name}", start, total) as show,
            ):
                while chunk:
                    file.write(chunk)
                    show(len(chunk))
                    chunk = _read(answer, _CHUNK)
        except OSError:
            part.drop()
            raise
    # A reader of a given length does not say that there was less.
    if total is not None and part.size != total:
        raise _BrokenOff(f"it ended after {part.size:,} of {total:,} bytes")
    return told


@contextlib.contextmanager
def _ask(url: str, part: _Part) -> Iterator[tuple[http.client.HTTPResponse, dict[str, str]]]:
    """Sends a request for a file, or for the rest of it, and opens the answer."""
    headers = {"User-Agent": f"effnetv2_jax/{__version__}", "Accept-Encoding": "identity"}
    if validator := part.validator:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": validator}
    request = urllib.request.Request(url, headers=headers)
    token = os.environ.get(TOKEN_VARIABLE)
    if token and url.startswith(f"{hub()}/"):
        # Other hosts must not see it, see _Redirects.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    redirects = _Redirects()
    try:
        answer = urllib.request.build_opener(redirects).open(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        raise _refused(url, error, part) from error
    except (http.client.InvalidURL, UnicodeError) as error:
        raise UsageError(f"{url!r} is no address: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        text = reason(cause) if isinstance(cause, Exception) else str(cause)
        if isinstance(cause, (socket.gaierror, ssl.SSLCertVerificationError)):
            raise UsageError(
                f"{url} cannot be reached: {text}; without a network, fetch it elsewhere and put "
                f"it at {part.path}"
            ) from error
        raise _BrokenOff(text) from error
    with answer:
        yield answer, redirects.told | _sums(answer.headers)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http, and takes the token to the same host only.

    Attributes:
        told: The sums that the servers on the way said. The Hugging Face Hub says a file's sum, and
            then redirects to where it is.
    """

    def __init__(self):
        self.told: dict[str, str] = {}

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("https", old.scheme):
            raise UsageError(f"{req.full_url} redirects to {newurl}, which is not https")
        self.told |= _sums(headers)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request and old[:2] == new[:2]:
            for name, value in req.unredirected_hdrs.items():
                if name == "Authorization":
                    request.add_unredirected_header(name, value)
        return request


def _refused(url: str, error: urllib.error.HTTPError, part: _Part) -> Exception:
    """Returns the exception for an answer that is an error."""
    said = f"{error.code} {error.headers.get('X-Error-Message') or error.reason}".strip()
    if error.code == 416:  # what is here is longer than the file
        part.drop()
    if error.code == 416 or error.code in _BUSY:
        return _BrokenOff(f"the server says {said}")
    if error.code in (404, 410):
        return Absent(f"{url} is not there: the server says {said}")
    login = f"; a private repository needs {TOKEN_VARIABLE}" if url.startswith(hub()) else ""
    return UsageError(f"{url} is refused: the server says {said}{login}")


def _beginning(answer: http.client.HTTPResponse, part: _Part) -> int:
    """Returns the place in the file at which an answer begins."""
    if answer.status != 206:
        return 0
    place = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    if place is None or int(place[1]) != part.size:
        part.drop()
        raise _BrokenOff("the server sent another part than the one that was asked for")
    return part.size


def _read(answer: http.client.HTTPResponse, count: int) -> bytes:
    try:
        return answer.read(count)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOff(reason(error)) from error


def _validator(headers: http.client.HTTPMessage) -> str:
    """Returns what ``If-Range`` takes, a strong ETag or a date; empty if there is none."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _sums(headers: http.client.HTTPMessage) -> dict[str, str]:
    """Returns the sums of the whole file that an answer says."""
    linked = headers.get("X-Linked-Etag", "").strip('"')
    sums = {"sha256": linked} if re.fullmatch("[0-9a-f]{64}", linked) else {}
    # Google Cloud Storage says the sum of what it stores, and may unpack that on the way.
    stored = headers.get("X-Goog-Stored-Content-Encoding", "identity") == "identity"
    goog = " ".join(headers.get_all("X-Goog-Hash", []))
    if stored and (md5 := re.search(r"\bmd5=([\w+/]{22}==)", goog)):
        sums["md5"] = base64.b64decode(md5[1]).hex()
    return sums


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Waits until no other process fetches a file. The system frees the lock if a process ends."""
    with path.with_name(f".{path.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.info("waiting for another process that fetches %s", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _pin(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.sha256")


def _pinned(path: pathlib.Path) -> str:
    """Returns the sum that a file had when it was fetched; empty if it never was."""
    pin = _pin(path)
    return pin.read_text().partition(" ")[0] if pin.is_file() else ""


def _digest(path: pathlib.Path, algorithm: str = "sha256") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _mirrored(url: str) -> str:
    """Returns the address that is asked: at the mirror, below the name of the file's own host."""
    mirror = os.environ.get(MIRROR_VARIABLE, "").rstrip("/")
    if mirror and not mirror.startswith(("https://", "http://")):
        raise UsageError(f"{MIRROR_VARIABLE} must begin with https:// or http://, got {mirror!r}")
    return f"{mirror}/{url.partition('://')[2]}" if mirror else url


def _offline() -> bool:
    value = os.environ.get(OFFLINE_VARIABLE, "")
    if value.lower() not in _SWITCH:
        raise UsageError(f"{OFFLINE_VARIABLE} must be 0 or 1, got {value!r}")
    return _SWITCH[value.lower()]
