"""Cloud TPU's accelerator types: their chips, cores, hosts and runtime versions.

Sizes and names: https://cloud.google.com/tpu/docs/supported-tpu-configurations; runtimes:
https://cloud.google.com/tpu/docs/runtimes. gcloud says which of them a zone has.
"""

import dataclasses
import difflib
from collections.abc import Container, Sequence

from effnetv2_jax.runtime.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Generation:
    """A generation of TPUs.

    Attributes:
        name: The name that people use, such as ``v5e``.
        sizes: The numbers that may stand in a type's name.
        meaning: The same numbers in words.
        examples: Type names for error messages.
        cores_per_chip: 1 or 2.
        counts_cores: True if the number in a type's name counts cores, False if chips.
        chips_per_host: The number of chips of each host, if a type has several hosts.
        chips_of_one_host: The largest number of chips that a type has on a single host.
        runtime_version: The image from which its VMs start.
    """

    name: str
    sizes: Container[int]
    meaning: str
    examples: Sequence[str]
    cores_per_chip: int
    counts_cores: bool
    chips_per_host: int
    chips_of_one_host: int
    runtime_version: str


def _older(name: str, sizes: tuple[int, ...]) -> Generation:
    return Generation(
        name=name,
        sizes=sizes,
        meaning=", ".join(map(str, sizes)),
        examples=[f"{name}-{size}" for size in sizes],
        cores_per_chip=2,
        counts_cores=True,
        chips_per_host=4,
        chips_of_one_host=4,
        runtime_version="tpu-ubuntu2204-base",
    )


def _three_dimensional(name: str, most: int, runtime_version: str) -> Generation:
    return Generation(
        name=name,
        sizes=range(8, most + 1, 8),
        meaning=f"a multiple of 8 up to {most}",
        examples=[f"{name}-{size}" for size in (8, 16, 32, 64, 128)],
        cores_per_chip=2,
        counts_cores=True,
        chips_per_host=4,
        chips_of_one_host=4,
        runtime_version=runtime_version,
    )


def _efficient(name: str, prefix: str, runtime_version: str) -> Generation:
    sizes = (1, 4, 8, 16, 32, 64, 128, 256)
    return Generation(
        name=name,
        sizes=sizes,
        meaning=", ".join(map(str, sizes)),
        examples=[f"{prefix}-{size}" for size in sizes],
        cores_per_chip=1,
        counts_cores=False,
        chips_per_host=4,
        chips_of_one_host=8,
        runtime_version=runtime_version,
    )


GENERATIONS = {
    "v2": _older("v2", (8, 32, 128, 256, 512)),
    "v3": _older("v3", (8, 32, 128, 256, 512, 1024, 2048)),
    "v4": _three_dimensional("v4", 8192, "tpu-ubuntu2204-base"),
    "v5litepod": _efficient("v5e", "v5litepod", "v2-alpha-tpuv5-lite"),
    "v5p": _three_dimensional("v5p", 12288, "v2-alpha-tpuv5"),
    "v6e": _efficient("v6e", "v6e", "v2-alpha-tpuv6e"),
}
"""The generations by the beginning of a type's name."""


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """The hardware behind an accelerator type.

    Attributes:
        type: The name for gcloud, such as ``v3-32``.
        chips: The number of chips of all hosts.
        cores: The number of cores of all hosts. JAX sees each core as a device; on v4 and v5p it
            sees each chip as one.
        hosts: The number of VMs, each of which runs one process.
        runtime_version: The image from which the VMs start.
    """

    type: str
    chips: int
    cores: int
    hosts: int
    runtime_version: str


def find(accelerator_type: str) -> Accelerator:
    """Looks up an accelerator type.

    >>> find("v3-32").hosts
    4

    Args:
        accelerator_type: A name such as ``v3-32`` or ``v5litepod-16``.

    Raises:
        UsageError: If there is no such type; the message names similar ones.
    """
    prefix, _, number = accelerator_type.rpartition("-")
    generation = GENERATIONS.get(prefix)
    if generation is None or not number.isascii() or not number.isdecimal():
        examples = [name for other in GENERATIONS.values() for name in other.examples]
        near = difflib.get_close_matches(accelerator_type.replace("v5e-", "v5litepod-"), examples)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(
            f"unknown accelerator type {accelerator_type!r}: {hint}"
            f"allowed are {', '.join(f'{name}-N' for name in GENERATIONS)}"
        )
    size = int(number)
    if size not in generation.sizes:
        what = "cores" if generation.counts_cores else "chips"
        raise UsageError(
            f"accelerator type {accelerator_type!r} has an impossible number of {what}: "
            f"{generation.name} has {generation.meaning}"
        )
    chips = size // generation.cores_per_chip if generation.counts_cores else size
    return Accelerator(
        type=f"{prefix}-{size}",
        chips=chips,
        cores=chips * generation.cores_per_chip,
        hosts=1 if chips <= generation.chips_of_one_host else chips // generation.chips_per_host,
        runtime_version=generation.runtime_version,
    )
