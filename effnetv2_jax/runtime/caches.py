"""Compiled programs that outlive the process: JAX's persistent cache, for our programs.

The programs turn it on; importing the library does not.
"""

import hashlib
import os
import pathlib
import platform
import threading
from typing import Any

import jax
from absl import logging

from effnetv2_jax.runtime.files import cache_folder

# Of one machine's folder. A training step of V2-B0 is a few MB.
LIMIT_BYTES = 2 * 1024**3
# Small programs are many, and each is a file.
MIN_COMPILE_SECONDS = 0.1
# What is kept: JAX's programs, and the traces beside them (training.traces).
PROGRAM_SUFFIX, TRACE_SUFFIX = "-cache", "-trace"
_HIT, _MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"


class Counts:
    """How many programs came from the cache, and how many were compiled and put there.

    Programs that are compiled in less time than it takes to be kept are neither.
    """

    def __init__(self):
        self.hits = self.misses = 0
        self._lock = threading.Lock()

    def event(self, event: str, **_: str | int) -> None:
        """What JAX calls, in any thread."""
        with self._lock:
            self.hits += event == _HIT
            self.misses += event == _MISS

    def __str__(self) -> str:
        """``warm``, ``cold``, or how many of how many; empty where no cache was asked."""
        if not self.hits and not self.misses:
            return ""
        if not self.misses:
            return "warm"
        if not self.hits:
            return "cold"
        return f"{self.hits} of {self.hits + self.misses} programs from the cache"


COUNTS = Counts()
_listening = False


def turn_on() -> None:
    """Keeps what is compiled, unless the user has said otherwise; counts what comes from there.

    The user says so by JAX's own settings: ``JAX_ENABLE_COMPILATION_CACHE=false``, or a folder in
    ``JAX_COMPILATION_CACHE_DIR``. Where the folder cannot be written, there is no cache.
    """
    global _listening
    if not _listening:
        jax.monitoring.register_event_listener(COUNTS.event)
        _listening = True
    settings: Any = jax.config  # whose type does not know its fields
    if not settings.jax_enable_compilation_cache or settings.jax_compilation_cache_dir:
        return
    # Set but empty: no folder, which is JAX's way to say no cache.
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = cache_folder() / "jax" / _machine()
        folder.mkdir(parents=True, exist_ok=True)
        # JAX would warn at every program.
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("permission denied")
        _shrink(folder, LIMIT_BYTES)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        logging.info("programs are not kept: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)


def folder() -> pathlib.Path | None:
    """Where JAX keeps programs; None where it keeps none, or not on a disk."""
    settings: Any = jax.config
    place = settings.jax_compilation_cache_dir
    if not settings.jax_enable_compilation_cache or not place or "://" in place:
        return None
    return pathlib.Path(place)


def _machine() -> str:
    """Names a kind of processor: XLA's programs for CPUs may use what another has not."""
    features = ""
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                features = " ".join(sorted(line.partition(":")[2].split()))
                break
    except OSError:  # not Linux
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"


def _shrink(folder: pathlib.Path, limit: int) -> None:
    """Deletes what was longest not read, until the rest is within the limit, and what is empty.

    A machine that loses its power may leave an empty file, which JAX can neither read nor would
    replace. The rest JAX can do itself (``jax_compilation_cache_max_size``), but needs a package
    for it and locks the folder for every program that is read; once, at the start, is enough.
    """
    files = []
    for path in folder.iterdir():
        if not path.name.endswith((PROGRAM_SUFFIX, TRACE_SUFFIX)):
            continue
        try:
            stat = path.stat()
        except FileNotFoundError:  # another process is at it
            continue
        if not stat.st_size:
            path.unlink(missing_ok=True)
        files.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    size = sum(size for _, size, _ in files)
    for _, file_size, path in sorted(files):
        if size <= limit:
            return
        path.unlink(missing_ok=True)
        size -= file_size
