"""Paths of the user, files that are whole or not there, and the user's cache folder."""

import contextlib
import os
import pathlib
import re
import secrets
import tempfile
from collections.abc import Iterator

from effnetv2_jax.runtime.errors import UsageError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

# Characters that no library reads as anything but themselves. A first part such as /gs is, to
# Orbax, the beginning of a URL. Orbax and TensorStore append up to 200 bytes.
_PLAIN = re.compile(r"(?!/(gs|s3|az|hf)(/|$))(?=.{1,3000}$)(/[A-Za-z0-9_.,=+@-]+)+")


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the absolute path of a user's file or folder, which need not exist.

    Args:
        path: A path on this machine, which may begin with ``~`` and hold any other character.

    Raises:
        UsageError: If it is a URL, or no path that the system can hold.
    """
    text = os.fspath(path)
    if _URL.match(text):
        raise UsageError(
            f"{text!r} is a URL: mount the bucket, as docs/cloud_tpu.md describes, and name the "
            "folder at which it is mounted"
        )
    try:
        # pathlib's own expanduser refuses the name of a user that does not exist.
        found = pathlib.Path(os.path.expanduser(text)).resolve()
        # What is written below it has longer paths.
        room = os.pathconf("/", "PC_PATH_MAX") - len(os.fsencode(found)) - 256
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"{text!r} is no path: {error}") from error
    if room < 0:
        raise UsageError(f"the path {text[:40]!r}… is {-room} bytes too long")
    return found


@contextlib.contextmanager
def plain_path(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a folder a path that Orbax and TensorStore cannot misread.

    Orbax takes a path for a pattern (``[0.1]``, ``\\``, ``**``) or for a URL (``/gs/…``, ``gs:``),
    and then writes checkpoints that it cannot read. TensorStore wants UTF-8. If the path has any
    characters but letters, digits and ``_.,=+@-``, they are given a symbolic link to it instead.
    The link is in the system's folder for temporary files, so the folder's own file system need
    not know links.

    Args:
        folder: A path, which need not exist.

    Yields:
        The folder's own path if it is plain, otherwise that of a link, which is removed at the end.

    Raises:
        UsageError: If the link cannot be made.
    """
    folder = folder.absolute()
    if _PLAIN.fullmatch(str(folder)):
        yield folder
        return
    # The folder that TMPDIR names may have the same characters.
    places = [place for place in (tempfile.gettempdir(), "/tmp") if _PLAIN.fullmatch(place)]
    with contextlib.ExitStack() as stack:
        try:
            temporary = tempfile.TemporaryDirectory(prefix="effnetv2_jax_", dir=places[0])
            link = pathlib.Path(stack.enter_context(temporary)) / "link"
            link.symlink_to(folder, target_is_directory=True)
        except (OSError, IndexError) as error:
            raise UsageError(
                f"Orbax cannot hold the path {str(folder)!r} and a link to it cannot be made: set "
                f"TMPDIR to a folder that takes symbolic links, or choose a path of letters, "
                "digits and _.,=+@- only"
            ) from error
        yield link


@contextlib.contextmanager
def whole_file(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a file appear whole, or not at all.

    The block writes to a temporary file in the same folder. When the block ends, that file is
    flushed to the disk and takes the path's name. If the block raises, the temporary file is
    deleted, and a file that had the name before is still there.

    Args:
        path: The file, in a folder that exists.

    Yields:
        The path of the temporary file, which is empty and ends like ``path``.

    Raises:
        OSError: If the file cannot be written.
    """
    path = pathlib.Path(path)
    # The same folder is the same file system, which an atomic rename needs.
    temporary = unnamed(path)
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def unnamed(path: pathlib.Path) -> pathlib.Path:
    """Returns a free path beside another one, for what does not yet have its name."""
    # Without the name: it may be as long as the system allows.
    return path.with_name(f".{secrets.token_hex(8)}.tmp{path.suffix}")


def write_atomically(path: pathlib.Path, text: str, *, errors: str = "strict") -> None:
    """Writes a UTF-8 text file with ``whole_file``.

    Args:
        path: The file, which may exist.
        text: Its new content.
        errors: What happens to characters that UTF-8 cannot hold, as for ``open``.

    Raises:
        OSError: If the file cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


def cache_folder() -> pathlib.Path:
    """Returns ``$XDG_CACHE_HOME/effnetv2_jax``, by default below ``~/.cache``."""
    # The XDG specification ignores relative paths.
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = pathlib.Path(root) if os.path.isabs(root) else pathlib.Path.home() / ".cache"
    return base / "effnetv2_jax"
