"""JAX's persistent cache of compiled programs, turned on for our programs.

Importing the library does not turn it on.
"""

import contextlib
import functools
import hashlib
import importlib.util
import os
import pathlib
import platform
import re
import threading
from typing import Any

import jax
from absl import logging

from effnetv2_jax.runtime.files import cache_folder

# The largest size of a machine's folder. A training step of V2-B0 takes a few MB.
LIMIT_BYTES = 2 * 1024**3
# Programs that compile in less time are not kept: they are many, and each is a file.
MIN_COMPILE_SECONDS = 0.1
_HIT, _MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"


class Counts:
    """The numbers of programs that came from the cache, and that were compiled and put there.

    Programs that compile too quickly to be kept are in neither.
    """

    def __init__(self):
        self.hits = self.misses = 0
        self._lock = threading.Lock()

    def event(self, event: str, **_: str | int) -> None:
        """Counts an event of JAX, in any thread."""
        with self._lock:
            self.hits += event == _HIT
            self.misses += event == _MISS

    def __str__(self) -> str:
        """Returns ``warm``, ``cold``, or how many programs of how many; empty if there are none."""
        if not self.hits or not self.misses:
            return "warm" if self.hits else "cold" if self.misses else ""
        return f"{self.hits} of {self.hits + self.misses} programs from the cache"


COUNTS = Counts()


@functools.cache
def _count_events() -> None:
    jax.monitoring.register_event_listener(COUNTS.event)


def turn_on() -> None:
    """Turns the cache on, unless the user decided otherwise, and counts what comes from it.

    The user decides with JAX's own settings: ``JAX_ENABLE_COMPILATION_CACHE=false``, or a folder in
    ``JAX_COMPILATION_CACHE_DIR``. If the folder cannot be written, there is no cache. JAX keeps the
    folder below ``LIMIT_BYTES`` if the package ``filelock`` is installed, which it needs for that.
    """
    _count_events()
    settings: Any = jax.config  # its type does not know its fields
    if not settings.jax_enable_compilation_cache or settings.jax_compilation_cache_dir:
        return
    # Set but empty means no folder: JAX's way to turn the cache off.
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = cache_folder() / "jax" / _machine()
        folder.mkdir(parents=True, exist_ok=True)
        # JAX would warn about every program.
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("permission denied")
        _repair(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        logging.info("programs are not kept: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    if importlib.util.find_spec("filelock") and "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
        jax.config.update("jax_compilation_cache_max_size", LIMIT_BYTES)


def _machine() -> str:
    """Returns a name for the kind of processor: XLA's CPU programs may not run on another."""
    features = platform.processor()
    with contextlib.suppress(OSError):  # not Linux
        text = pathlib.Path("/proc/cpuinfo").read_text()
        found = re.search(r"^(?:flags|Features).*?:(.*)$", text, re.MULTILINE)
        features = " ".join(sorted(found[1].split())) if found else ""
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"


def _repair(folder: pathlib.Path) -> None:
    """Deletes empty files, and gives programs the time of their last use if it is missing.

    A machine that loses power may leave an empty file, which JAX would neither read nor replace.
    With a limit, JAX expects a time beside each program, which it does not write without a limit.
    """
    for program in folder.glob("*-cache"):
        try:
            stat = program.stat()
        except FileNotFoundError:  # another process deleted it
            continue
        used = program.with_name(program.name.removesuffix("cache") + "atime")
        if not stat.st_size:
            program.unlink(missing_ok=True)
            used.unlink(missing_ok=True)
        elif not used.exists():
            used.write_bytes(stat.st_mtime_ns.to_bytes(8, "little"))
