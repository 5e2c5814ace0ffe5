"""What GKE calls TPUs: labels of its nodes, machine types, and the slices that there are of each.

Source: https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus. GKE has no TPU v2. Of a
slice that it has on machines of 4 and of 8 chips, those of 4 are here.
"""

import dataclasses
import math

MAX_NAME = 40
"""Characters of a job's, so that names of its pods, NAME-slice-0-0-xxxxx, are names too."""

_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SOLID = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"),
    *("4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """A kind of host.

    Attributes:
        accelerator: the label cloud.google.com/gke-tpu-accelerator of its nodes.
        machine_type: as node pools are made of.
        chips: of a host.
        topologies: of slices of such hosts: their label cloud.google.com/gke-tpu-topology.
        multislice: whether several slices can be one job.
    """

    accelerator: str
    machine_type: str
    chips: int
    topologies: tuple[str, ...]
    multislice: bool = True

    def hosts(self, topology: str) -> int:
        """Of a slice."""
        return math.prod(int(side) for side in topology.split("x")) // self.chips


MACHINES = {
    "v3": (
        Machine("tpu-v3-device", "ct3-hightpu-4t", 4, ("2x2",), multislice=False),
        Machine(
            "tpu-v3-slice",
            "ct3p-hightpu-4t",
            4,
            ("4x4", "4x8", "8x8", "8x16", "16x16", "16x32", "32x32"),
            multislice=False,
        ),
    ),
    "v4": (Machine("tpu-v4-podslice", "ct4p-hightpu-4t", 4, _SOLID),),
    "v5e": (
        Machine("tpu-v5-lite-podslice", "ct5lp-hightpu-1t", 1, ("1x1",)),
        Machine("tpu-v5-lite-podslice", "ct5lp-hightpu-4t", 4, _FLAT),
    ),
    "v5p": (Machine("tpu-v5p-slice", "ct5p-hightpu-4t", 4, _SOLID),),
    "v6e": (
        Machine("tpu-v6e-slice", "ct6e-standard-1t", 1, ("1x1",)),
        Machine("tpu-v6e-slice", "ct6e-standard-4t", 4, _FLAT),
    ),
}
"""By the name of the TPU."""


def machine_of(tpu: str, topology: str, slices: int = 1) -> Machine:
    """The hosts of so many slices.

    Args:
        tpu: a name in ``MACHINES``.
        topology: of a slice, in chips.
        slices: that are to be one job.

    Raises:
        ValueError: one sentence, for a topology that there is not, and for several slices of what
            GKE does not join: TPU v3, and slices of one host.
    """
    allowed = {name: machine for machine in MACHINES[tpu] for name in machine.topologies}
    if topology not in allowed:
        raise ValueError(f"there is no {tpu} {topology!r}: allowed are {', '.join(allowed)}")
    machine = allowed[topology]
    if slices > 1 and (not machine.multislice or machine.hosts(topology) == 1):
        raise ValueError(
            f"{slices} slices of {tpu} {topology} cannot be one job: they need several hosts each, "
            "and another TPU than v3"
        )
    return machine
