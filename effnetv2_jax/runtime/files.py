"""Files that are there whole or not at all, whenever the machine stops; the user's cache."""

import os
import pathlib


def write_atomically(path: pathlib.Path, text: str, *, errors: str = "strict") -> None:
    """Writes UTF-8 text to a file beside the path, and puts it there when it is on the disk.

    Args:
        path: of the file, which may exist.
        text: what it holds then.
        errors: what is done with what UTF-8 cannot hold, as for ``open``.

    Raises:
        OSError: where it cannot be written; a file that was there is there still.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors=errors) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def cache_folder() -> pathlib.Path:
    """``$XDG_CACHE_HOME/effnetv2_jax``, by default under ``~/.cache``."""
    # The specification has relative paths ignored.
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = pathlib.Path(root) if os.path.isabs(root) else pathlib.Path.home() / ".cache"
    return base / "effnetv2_jax"
