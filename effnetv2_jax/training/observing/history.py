"""Where a run's numbers go: TensorBoard, the log, and JSON lines for reports and scripts.

A disk that is full costs TensorBoard's numbers, not the run: it is said once, and what could not be
written to ``metrics.jsonl`` is written when there is space again.
"""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from absl import logging
from clu import asynclib, parameter_overview

from effnetv2_jax.runtime.files import write_atomically

if TYPE_CHECKING:
    # Brings TensorBoard along, and Keras: seconds that no first step should wait for.
    from clu import metric_writers


class Writer(Protocol):
    """What a run needs of clu's ``MetricWriter``."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """A file of one JSON object a line, each written at once.

    Args:
        path: of the file, which may exist.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._unwritten: list[str] = []
        self._failing = False

    def append(self, row: Mapping[str, object]) -> None:
        """Writes a row, and those before it that could not be written."""
        self._unwritten.append(json.dumps(row) + "\n")
        self.flush()

    def flush(self) -> None:
        """Tries once more to write what could not be written."""
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
    """Appends all or nothing."""
    end = os.fstat(file).st_size
    try:
        while data:
            data = data[os.write(file, data) :]
    except OSError:
        os.ftruncate(file, end)
        raise


class JsonLinesWriter:
    """Appends one object a call to ``workdir/metrics.jsonl``: step, time (Unix, s), scalars."""

    def __init__(self, workdir: str | pathlib.Path):
        self._lines = JsonLines(pathlib.Path(workdir) / "metrics.jsonl")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        line = {"step": step, "time": round(time.time(), 3)}
        self._lines.append(line | {name: float(value) for name, value in scalars.items()})

    def flush(self) -> None:
        self._lines.flush()

    close = flush


class LaterWriter:
    """One of clu's writers, which a thread makes when there is something to write, and writes to.

    Like clu's own in a thread, it raises in one call what went wrong in a call before.

    Args:
        make: of the writer.
    """

    def __init__(self, make: Callable[[], "metric_writers.MetricWriter"]):
        self._make = make
        self._writer: metric_writers.MetricWriter | None = None
        # One thread, so that the order stays.
        self._pool = asynclib.Pool("writer", max_workers=1)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._pool(self._write)(step, scalars)

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._writer = self._writer or self._make()
        self._writer.write_scalars(step, scalars)

    def flush(self) -> None:
        self._pool.join()
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        self._pool.close()
        if self._writer is not None:
            self._writer.close()


class ForgivingWriter:
    """A writer whose failures are logged, once until it works again, and end nothing.

    One that has failed is given up, and the next flush makes another: TensorBoard reads no further
    in a file where half an event was written. What comes in between is lost.

    Args:
        make: of the writer, which raises in one call what went wrong in a call before.
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
        except Exception as error:  # clu, TensorFlow and the system have no common one.
            self._writer = None
            if not self._failing:
                reason = str(error.__cause__ or error).partition("\n")[0]
                logging.error("TensorBoard's numbers cannot be written (%s), for now", reason)
            self._failing = True


class Writers:
    """Several writers as one.

    Args:
        *writers: in this order; none for a writer that writes nothing.
    """

    def __init__(self, *writers: Writer):
        self._writers = writers

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def make_writer(workdir: str | pathlib.Path | None) -> Writer:
    """A writer to TensorBoard and ``metrics.jsonl`` in the workdir, and to the log.

    Args:
        workdir: of the run; None for a writer that writes nothing.
    """
    if workdir is None:
        return Writers()

    def to_log() -> "metric_writers.MetricWriter":
        from clu import metric_writers

        return metric_writers.LoggingWriter()

    def to_tensorboard() -> "metric_writers.MetricWriter":
        from clu import metric_writers

        return metric_writers.SummaryWriter(str(workdir))

    return Writers(
        LaterWriter(to_log),
        ForgivingWriter(lambda: LaterWriter(to_tensorboard)),
        JsonLinesWriter(workdir),
    )


def rewind(workdir: str | pathlib.Path, step: int) -> None:
    """Takes back what ``metrics.jsonl`` has of later steps, which are going to be made again.

    Args:
        workdir: of the run.
        step: that the run goes on from.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return
    content, kept = path.read_bytes(), b""
    for line in content.splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a kill has cut it off
        if row["step"] <= step:
            kept += line.removesuffix(b"\n") + b"\n"
    if content.startswith(kept):
        # Which a full disk allows.
        os.truncate(path, len(kept))
    else:
        write_atomically(path, kept.decode())


def write_parameter_overview(path: pathlib.Path, params) -> None:
    """Writes a table of every parameter's name, shape, dtype and size; params may be abstract."""
    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    write_atomically(path, table + "\n")
