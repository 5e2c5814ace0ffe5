"""Counts the traffic between devices in a compiled program, from its HLO text.

XLA's own cost analysis does not report it, and its estimate of a step's time hardly counts it.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collectives:
    """All collectives of one kind that one device takes part in when the program runs once.

    Attributes:
        count: The number that run. One with several operands is one.
        bytes: The bytes of the whole arrays that are exchanged: what each device brings to an
            all-reduce or a reduce-scatter, and what it has after an all-gather.
    """

    count: int = 0
    bytes: int = 0

    def __add__(self, other: "Collectives") -> "Collectives":
        return Collectives(self.count + other.count, self.bytes + other.bytes)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """One line of HLO: ``%name = type opcode(arguments), attributes``."""

    name: str
    type: str
    opcode: str
    rest: str


# `%region_0.2 (param: (s32[], f32[8])) -> f32[8] {`. ENTRY stands in front of the program itself.
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) .*\{$")
# A type may be a tuple and hold brackets of every kind, but no word directly in front of one.
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<type>.*?) (?P<opcode>[a-z][a-z0-9-]*)\((?P<rest>.*)$"
)
_SHAPE = re.compile(r"\b(?P<dtype>pred|[a-z]+(?P<bits>\d+)\w*)\[(?P<dimensions>[\d,<=]*)\]")
# The computations that an instruction runs. ``to_apply`` only adds two numbers, or is called.
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)"
)
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NAME = re.compile(r"%([\w.-]+)")


def collectives_of(hlo_text: str) -> dict[str, Collectives]:
    """Returns the collectives of a compiled program, for CPU or TPU.

    A collective in the body of a loop counts as often as the loop runs. The text tells how often
    for ``lax.scan``; for other loops it counts once. The two halves of an asynchronous collective
    count as one.

    Args:
        hlo_text: ``compiled.as_text()``.

    Returns:
        The collectives by kind, a name in ``KINDS``. Kinds that do not occur are left out.
    """
    computations, entry = _parse(hlo_text)
    found: defaultdict[str, Collectives] = defaultdict(Collectives)
    for name, times in _runs(computations, entry).items():
        types = {instruction.name: instruction.type for instruction in computations[name]}
        for instruction in computations[name]:
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS:
                exchanged = _bytes_exchanged(instruction, kind, types)
                found[kind] += Collectives(times, times * exchanged)
    return dict(found)


def _parse(hlo_text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns the instructions by computation, and the name of the program's computation."""
    computations: dict[str, list[_Instruction]] = {}
    entry = name = ""
    for line in hlo_text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head["name"]
            computations[name] = []
            entry = name if head["entry"] else entry
        elif instruction := _INSTRUCTION.match(line):
            computations[name].append(_Instruction(**instruction.groupdict()))
    return computations, entry


def _runs(computations: dict[str, list[_Instruction]], entry: str) -> Counter[str]:
    """Counts how often each computation runs when the program runs once."""
    runs: Counter[str] = Counter()

    def run(name: str, times: int) -> None:
        runs[name] += times
        for instruction in computations[name]:
            for called in _called(instruction):
                run(called, times * _trips(instruction, computations))

    run(entry, 1)
    return runs


def _trips(instruction: _Instruction, computations: dict[str, list[_Instruction]]) -> int:
    """Returns how often a loop runs, and 1 for any other instruction."""
    if instruction.opcode != "while":
        return 1
    if known := _TRIP_COUNT.search(instruction.rest):
        return int(known[1])
    # For TPUs it is left out. A loop that starts at 0 ends at the only number in its condition.
    condition = _CONDITION.search(instruction.rest)
    bounds = [
        int(bound[0])
        for line in computations.get(condition[1] if condition else "", ())
        if line.opcode == "constant" and (bound := re.match(r"\d+", line.rest))
    ]
    return bounds[0] if len(bounds) == 1 else 1


def _called(instruction: _Instruction) -> Iterator[str]:
    # The later parts of an asynchronous call repeat the name of what its start runs.
    if instruction.opcode.endswith(("-done", "-update")):
        return
    yield from _CALLED.findall(instruction.rest)
    for branches in _BRANCHES.findall(instruction.rest):
        yield from (name.strip().lstrip("%") for name in branches.split(","))


def _bytes_exchanged(instruction: _Instruction, kind: str, types: dict[str, str]) -> int:
    operands = sum(_bytes_of(types[name]) for name in _NAME.findall(_arguments(instruction.rest)))
    if kind != "all-gather":
        return operands
    result = _bytes_of(instruction.type)
    # The start of an asynchronous collective returns its operands beside its result.
    return result - operands if instruction.opcode.endswith("-start") else result


def _arguments(rest: str) -> str:
    """Returns the text up to the bracket that closes the arguments; layouts have brackets too."""
    depth = 1
    for end, character in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return rest[:end]
    return rest


def _bytes_of(type_text: str) -> int:
    """Returns the bytes of all arrays in a type, without the padding of a TPU's tiles."""
    bits = 0
    for shape in _SHAPE.finditer(type_text):
        dimensions = [int(size.lstrip("<=")) for size in shape["dimensions"].split(",") if size]
        bits += math.prod(dimensions) * int(shape["bits"] or 8)
    return -(-bits // 8)
