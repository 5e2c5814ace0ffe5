"""Records of training steps that were compiled for TPUs, in one file that people can read.

``compiled_steps.json`` comes with the package and holds the steps behind docs/reproduction.md. To
make it again, delete it, and run on a machine with libtpu, in a checkout::

    python -m effnetv2_jax.benchmark tables --table=all --device=tpu:v3:4x4 \\
        --records=effnetv2_jax/benchmarks/tpu/compiled_steps.json

What a user compiles goes to a file of the same kind in the cache folder. Both are read, and the
newest record of a step counts.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging

from effnetv2_jax.benchmarks.timing.steps import StepSpec
from effnetv2_jax.benchmarks.tpu.collectives import Collectives
from effnetv2_jax.benchmarks.tpu.figures import ProgramFigures
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.files import write_atomically

PACKAGE_FILE = pathlib.Path(__file__).with_name("compiled_steps.json")

Key = tuple[StepSpec, str, int]


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A training step that was compiled for a TPU, and what it costs on one core.

    XLA counts the work in a loop's body once. Gradient accumulation is such a loop, around nearly
    all of the program that takes gradients, so its operations, bytes and seconds are multiplied by
    ``accumulation_steps``. Collectives are counted by how often each runs.

    Attributes:
        step: The step.
        topology: The kind of chip and their arrangement, as libtpu names them.
        batch_per_core: The number of images per core and step.
        device_kind: The kind of chip as JAX names it.
        cores: The number of cores of the topology.
        memory_limit: Bytes per core that programs may use, as the compiler has it.
        gradients: The figures of the program that takes gradients.
        update: The figures of the program that updates the state.
        versions: The versions of jax, jaxlib and libtpu.
        made: The date and time in UTC, or the date and the commit.
        program: A digest of the programs' text before they are compiled. None if it is not known.
        checked: The step has the same programs today. False if they were not compared. It is not
            written to the file.
    """

    step: StepSpec
    topology: str
    batch_per_core: int
    device_kind: str
    cores: int
    memory_limit: int
    gradients: ProgramFigures
    update: ProgramFigures
    versions: Mapping[str, str]
    made: str
    program: str | None
    checked: bool = False

    @property
    def key(self) -> Key:
        """The step, its topology and its batch, by which a record is found."""
        return self.step, self.topology, self.batch_per_core

    @property
    def hbm_used(self) -> int:
        """The bytes per core at the fuller moment of the step, with those beside the program."""
        return max(program.memory + program.beside for program in (self.gradients, self.update))

    @property
    def hbm_margin(self) -> int:
        """The bytes per core that stay free. Below 0 if the step does not fit."""
        return self.memory_limit - self.hbm_used

    @property
    def refused(self) -> bool:
        """True if the compiler refused a program because it does not fit."""
        return self.gradients.refused or self.update.refused

    @property
    def fits(self) -> bool:
        """True if the step and the state that it works on fit into a core's memory."""
        return not self.refused and self.hbm_margin >= 0

    @property
    def flops(self) -> float | None:
        """Operations per core and step, two for a multiply-add. None if that is not known."""
        return self._total("flops")

    @property
    def bytes_accessed(self) -> float | None:
        """Bytes that a core reads and writes in a step. None if that is not known."""
        return self._total("bytes_accessed")

    @property
    def seconds(self) -> float | None:
        """XLA's estimate of a step's time, which hardly counts collectives. None without one."""
        return self._total("seconds")

    @property
    def collectives(self) -> dict[str, Collectives] | None:
        """The collectives that a core takes part in, by kind. None if the compiler refused."""
        if self.refused:
            return None
        found = dict(self.gradients.collectives)
        for kind, counted in self.update.collectives.items():
            found[kind] = found.get(kind, Collectives()) + counted
        return found

    @property
    def remark(self) -> str:
        """A warning that the figures may be those of other code. Empty if they are not."""
        if self.checked:
            return ""
        date = self.made[:10]
        if self.program is None:
            return f"compiled from an earlier version of the step ({date})"
        return f"compiled on {date} and not compared with the step as it is now"

    def _total(self, field: str) -> float | None:
        gradients, update = (getattr(program, field) for program in (self.gradients, self.update))
        # Loops over equal blocks are inside the program, where XLA counts them once.
        if self.refused or self.step.scan_blocks or gradients is None or update is None:
            return None
        return gradients * self.step.accumulation_steps + update

    def as_json(self) -> dict[str, Any]:
        """Returns the record as it stands in a file."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["checked"]
        return fields | {
            "step": dataclasses.asdict(self.step),
            "gradients": self.gradients.as_json(),
            "update": self.update.as_json(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "CompiledStep":
        """Returns the record that ``as_json`` made these fields of."""
        programs = {n: ProgramFigures.from_json(fields[n]) for n in ("gradients", "update")}
        return cls(**{**fields, **programs, "step": StepSpec(**fields["step"])})


def read(path: pathlib.Path) -> dict[Key, CompiledStep]:
    """Returns the records of the package's file and of another one; the newest of a step counts.

    Args:
        path: The other file, which need not exist.

    Raises:
        UsageError: If the other file is not one of records.
    """
    found = sorted([*_read(PACKAGE_FILE), *_read(path)], key=lambda record: record.made)
    return {record.key: record for record in found}


def write(path: pathlib.Path, record: CompiledStep) -> None:
    """Adds a record to a file, in place of an older one of the same step.

    A file that cannot be written is a warning: the figures are there, and are only not kept.
    """
    records = {known.key: known for known in _read(path)} | {record.key: record}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, as_text(records.values()))
    except OSError as error:
        logging.warning("%s cannot be written, so the figures are not kept: %s", path, error)


def as_text(records: Iterable[CompiledStep]) -> str:
    """Returns the text of a file: sorted, with a line for each field of a record."""

    def order(record: CompiledStep) -> tuple:
        step = json.dumps(dataclasses.asdict(record.step))
        return record.step.model, record.topology, record.step.image_size, step, record.key[2]

    texts = []
    for record in sorted(records, key=order):
        lines = (f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in record.as_json().items())
        texts.append(" {\n" + ",\n".join(lines) + "\n }")
    return "[\n" + ",\n".join(texts) + "\n]\n"


def _read(path: pathlib.Path) -> list[CompiledStep]:
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, list):
            raise TypeError("it is not a list")
        return [CompiledStep.from_json(fields) for fields in found]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{str(path)!r} must be a JSON file of compiled steps, which `benchmark tpu` has "
            f"written, but cannot be read as one ({type(error).__name__}: {error})"
        ) from error
