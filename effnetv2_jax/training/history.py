"""Where a run's numbers go: TensorBoard, the log, and JSON lines for reports and scripts."""

import json
import pathlib
import time
from collections.abc import Mapping

from clu import metric_writers, parameter_overview


class JsonLinesWriter(metric_writers.MultiWriter):
    """Appends one object a call to ``workdir/metrics.jsonl``: step, time (Unix, s), scalars.

    Everything but scalars is ignored, which is what a MultiWriter of no writers does.
    """

    def __init__(self, workdir: str | pathlib.Path):
        super().__init__([])
        file = pathlib.Path(workdir) / "metrics.jsonl"
        # Line by line, so that a run that is killed leaves what it knew.
        self._file = file.open("a", buffering=1, encoding="utf-8")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        line = {"step": step, "time": round(time.time(), 3)}
        line |= {name: float(value) for name, value in scalars.items()}
        self._file.write(json.dumps(line) + "\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def make_writer(workdir: str | pathlib.Path | None) -> metric_writers.MetricWriter:
    """A writer to TensorBoard and ``metrics.jsonl`` in the workdir, and to the log.

    Args:
        workdir: of the run; None for a writer that writes nothing.
    """
    if workdir is None:
        return metric_writers.MultiWriter([])
    return metric_writers.MultiWriter(
        [metric_writers.create_default_writer(workdir), JsonLinesWriter(workdir)]
    )


def write_parameter_overview(path: pathlib.Path, params) -> None:
    """Writes a table of every parameter's name, shape, dtype and size; params may be abstract."""
    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    path.write_text(table + "\n", encoding="utf-8")
