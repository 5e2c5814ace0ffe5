"""What a compiler says of a program: whether it fits, its memory, work and collectives."""

import dataclasses
import re
import time
from typing import Any

import jax

from effnetv2_jax.benchmarks.tpu.collectives import Collectives, collectives_of


@dataclasses.dataclass(frozen=True)
class ProgramFigures:
    """Of one program on one device.

    Attributes:
        refused: the compiler found that it does not fit; memory is what it says all of the program
            would take, and nothing else is known.
        arguments: bytes of its arguments in the device's memory.
        memory: bytes in all: arguments, results that take no argument's place, temporaries and
            the program itself.
        memory_limit: bytes a program may use, which a compiler tells only where it refuses.
        flops: floating-point operations, two a multiply-add.
        bytes_accessed: read and written, as XLA counts them.
        seconds: XLA's estimate of the time; None where it makes none.
        collectives: by kind.
        compile_seconds: how long it took to compile.
    """

    refused: bool
    arguments: int
    memory: int
    memory_limit: int | None
    flops: float
    bytes_accessed: float
    seconds: float | None
    collectives: dict[str, Collectives]
    compile_seconds: float

    def as_json(self) -> dict[str, Any]:
        """For ``from_json``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "ProgramFigures":
        """From what ``as_json`` gives; raises TypeError, KeyError or AttributeError for another."""
        collectives = {kind: Collectives(**c) for kind, c in fields["collectives"].items()}
        return cls(**{**fields, "collectives": collectives})


def compile_and_measure(lowered: jax.stages.Lowered) -> ProgramFigures:
    """Compiles a program; one that does not fit into the device's memory is a result as well."""
    started = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = refused_sizes(str(error))
        if sizes is None:
            raise
        return ProgramFigures(
            refused=True,
            arguments=0,
            memory=sizes[0],
            memory_limit=sizes[1],
            flops=0.0,
            bytes_accessed=0.0,
            seconds=None,
            collectives={},
            compile_seconds=time.perf_counter() - started,
        )
    seconds = time.perf_counter() - started
    # Optional as JAX declares them; CPU's and TPU's compilers have them all.
    memory: Any = compiled.memory_analysis()
    cost: dict[str, float] = compiled.cost_analysis() or {}
    text = compiled.as_text() or ""
    return ProgramFigures(
        refused=False,
        arguments=memory.argument_size_in_bytes,
        memory=memory_of(compiled),
        memory_limit=None,
        flops=cost.get("flops", 0.0),
        bytes_accessed=cost.get("bytes accessed", 0.0),
        seconds=_estimated_seconds(cost, text),
        collectives=collectives_of(text),
        compile_seconds=seconds,
    )


def memory_of(compiled: jax.stages.Compiled) -> int:
    """Bytes on a device: arguments, results that take no argument's place, temporaries, code."""
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
    """Bytes that a refused program would use and may use, out of the compiler's message.

    Returns:
        None where the message is about something else.
    """
    for pattern in _REFUSALS:
        if "RESOURCE_EXHAUSTED" in message and (sizes := pattern.search(message)):
            used, used_unit, limit, limit_unit = sizes.groups()
            return (
                int(float(used) * 2 ** _UNITS[used_unit]),
                int(float(limit) * 2 ** _UNITS[limit_unit]),
            )
    return None
