"""Writes a run's metrics: to TensorBoard, to the log, and as JSON lines for reports and scripts.

A full disk costs TensorBoard's numbers, not the run. The failure is logged once, and rows that
could not be written to ``metrics.jsonl`` are written when there is space again.
"""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from absl import logging

from effnetv2_jax.runtime.files import write_atomically


class Writer(Protocol):
    """The methods of clu's ``MetricWriter`` that a run calls."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """A file with one JSON object per line, each of which is written at once.

    Args:
        path: The file, which may exist.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._unwritten: list[str] = []
        self._failing = False

    def append(self, row: Mapping[str, object]) -> None:
        """Writes a row, after all earlier rows that could not be written."""
        self._unwritten.append(json.dumps(row) + "\n")
        self.flush()

    def flush(self) -> None:
        """Tries again to write the rows that could not be written."""
        try:
            while self._unwritten:
                with self._path.open("ab", buffering=0) as file:
                    _append(file.fileno(), self._unwritten[0].encode())
                del self._unwritten[0]
        except OSError as error:
            if not self._failing:
                logging.error("%s cannot be written (%s), for now", self._path, error.strerror)
            self._failing = True
            return
        if self._failing:
            logging.info("%s could be written again, nothing is missing", self._path)
        self._failing = False


def _append(file: int, data: bytes) -> None:
    """Appends all bytes or none."""
    end = os.fstat(file).st_size
    try:
        while data:
            data = data[os.write(file, data) :]
    except OSError:
        os.ftruncate(file, end)
        raise


class JsonLinesWriter(JsonLines):
    """Appends one object per call to ``workdir/metrics.jsonl``: step, Unix time in s, scalars."""

    def __init__(self, workdir: str | pathlib.Path):
        super().__init__(pathlib.Path(workdir) / "metrics.jsonl")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        line = {"step": step, "time": round(time.time(), 3)}
        self.append(line | {name: float(value) for name, value in scalars.items()})

    close = JsonLines.flush


class ForgivingWriter:
    """A writer whose failures are logged, once until it works again, and do not end the run.

    After a failure the writer is dropped, and the next ``flush`` makes another one, because
    TensorBoard stops reading a file at the first event that is cut off. Numbers that come between
    the two are lost.

    Args:
        make: Makes the writer, which may raise in one call what went wrong in an earlier one.
    """

    def __init__(self, make: Callable[[], Writer]):
        self._make = make
        self._writer: Writer | None = None
        self._failing = False
        self.flush()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        with self._forgiving():
            if self._writer is not None:
                self._writer.write_scalars(step, scalars)

    def flush(self) -> None:
        with self._forgiving():
            if self._writer is None:
                self._writer = self._make()
            self._writer.flush()
            if self._failing:
                logging.info("TensorBoard's numbers go on; those in between are missing")
            self._failing = False

    def close(self) -> None:
        with self._forgiving():
            if self._writer is not None:
                self._writer.close()

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # clu, TensorFlow and the system share no narrower class.
            self._writer = None
            if not self._failing:
                reason = str(error.__cause__ or error).partition("\n")[0]
                logging.error("TensorBoard's numbers cannot be written (%s), for now", reason)
            self._failing = True


def make_writer(workdir: str | pathlib.Path | None) -> Writer:
    """Returns a writer to TensorBoard and ``metrics.jsonl`` in the workdir, and to the log.

    Args:
        workdir: The folder of the run; None for a writer that writes nothing.
    """
    # Brings TensorFlow along, which reports and scripts that read metrics do without.
    from clu import metric_writers

    if workdir is None:
        return metric_writers.MultiWriter([])

    def make_tensorboard() -> Writer:
        return metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(workdir)))

    writers = [metric_writers.LoggingWriter(), ForgivingWriter(make_tensorboard)]
    return metric_writers.MultiWriter([*writers, JsonLinesWriter(workdir)])


def rewind(workdir: str | pathlib.Path, step: int) -> None:
    """Removes rows of later steps from ``metrics.jsonl``, because these steps are made again.

    Args:
        workdir: The folder of the run.
        step: The step from which the run goes on.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return
    content, kept = path.read_bytes(), b""
    for line in content.splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # A kill cut it off.
        if row["step"] <= step:
            kept += line.removesuffix(b"\n") + b"\n"
    if content.startswith(kept):
        # This works on a full disk, too.
        os.truncate(path, len(kept))
    else:
        write_atomically(path, kept.decode())


def write_parameter_overview(path: pathlib.Path, params: object) -> None:
    """Writes a table of the parameters, which may be abstract, unless the file exists."""
    if path.exists():
        return
    from clu import parameter_overview

    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    write_atomically(path, table + "\n")
