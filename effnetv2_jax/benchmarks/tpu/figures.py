"""The compiler's figures of a program: if it fits, its memory, its work and its collectives."""

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

import jax

from effnetv2_jax.benchmarks.tpu.collectives import Collectives, collectives_of


@dataclasses.dataclass(frozen=True)
class ProgramFigures:
    """The figures of one program on one device.

    Attributes:
        memory: Bytes in all: arguments, results that do not take the place of an argument,
            temporaries, and the program itself.
        compile_seconds: The time that compiling took.
        arguments: Bytes of the arguments.
        beside: Bytes in the device's memory that the program does not see, such as the optimizer's
            slots while gradients are taken.
        flops: Floating-point operations, two for a multiply-add.
        bytes_accessed: Bytes read and written, as XLA counts them.
        seconds: The time that XLA estimates. None if it makes no estimate.
        collectives: The traffic between devices, by kind.
        refused: The compiler refused the program because it does not fit. Then ``memory`` is what
            it would take, and the other figures are not known.
        memory_limit: Bytes that a program may use. The compiler tells only if it refuses.
    """

    memory: int
    compile_seconds: float
    arguments: int = 0
    beside: int = 0
    flops: float = 0.0
    bytes_accessed: float = 0.0
    seconds: float | None = None
    collectives: Mapping[str, Collectives] = dataclasses.field(default_factory=dict)
    refused: bool = False
    memory_limit: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns the fields that say something, for ``from_json``."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ProgramFigures":
        """Returns the figures that ``as_json`` made these fields of."""
        found = fields.get("collectives", {})
        collectives = {kind: Collectives(**counted) for kind, counted in found.items()}
        return cls(**{**fields, "collectives": collectives})


def compile_and_measure(lowered: jax.stages.Lowered) -> ProgramFigures:
    """Compiles a program. One that does not fit into the device's memory is a result as well."""
    started = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = refused_sizes(str(error))
        if sizes is None:
            raise
        seconds = time.perf_counter() - started
        return ProgramFigures(sizes[0], seconds, refused=True, memory_limit=sizes[1])
    seconds = time.perf_counter() - started
    # JAX declares these as optional. The compilers for CPU and TPU have them all.
    memory: Any = compiled.memory_analysis()
    cost: dict[str, float] = compiled.cost_analysis() or {}
    text = compiled.as_text() or ""
    return ProgramFigures(
        memory=memory_of(compiled),
        compile_seconds=seconds,
        arguments=memory.argument_size_in_bytes,
        flops=cost.get("flops", 0.0),
        bytes_accessed=cost.get("bytes accessed", 0.0),
        seconds=_estimated_seconds(cost, text),
        collectives=collectives_of(text),
    )


def memory_of(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes that a program takes on a device, as in ``ProgramFigures.memory``."""
    memory: Any = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def _estimated_seconds(cost: dict[str, float], hlo_text: str) -> float | None:
    # For v4 and v5e, every operation of this kind enters XLA's sum as -1 (libtpu 0.0.42).
    unknown = hlo_text.count('custom_call_target="ConcatBitcast"')
    seconds = cost.get("optimal_seconds", 0.0) + unknown
    return seconds if seconds > 0 else None


_SIZE = r"([\d.]+)([KMGT]?)"
_REFUSALS = (
    # "Ran out of memory in memory space hbm. Used 19.89G of 15.48G hbm. Exceeded hbm capacity by …"
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
    # "Ran out of memory on HBM, the total memory required for HLO temporaries (2.00T) exceeds
    # available HBM (15.48G)."
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def refused_sizes(message: str) -> tuple[int, int] | None:
    """Reads the compiler's message about a program that does not fit.

    Returns:
        The bytes that the program would use, and those that it may use. None if the message is
        about something else.
    """
    for pattern in _REFUSALS:
        if "RESOURCE_EXHAUSTED" in message and (sizes := pattern.search(message)):
            used, used_unit, limit, limit_unit = sizes.groups()
            return (
                int(float(used) * 2 ** _UNITS[used_unit]),
                int(float(limit) * 2 ** _UNITS[limit_unit]),
            )
    return None
