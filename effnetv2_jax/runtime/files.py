"""Files that are whole or not there, whenever the machine stops; and the user's cache folder."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator


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
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
