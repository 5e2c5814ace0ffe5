"""GKE's TPUs: the labels of their nodes, their machine types, and the slices that exist of each.

Source: https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus. GKE has no TPU v2. If a
slice exists on machines of 4 and of 8 chips, only the one with 4 is listed here.
"""

import dataclasses
import math

from effnetv2_jax.runtime.errors import UsageError

MAX_NAME = 40
"""The longest name of a job with which the names of its pods, NAME-slice-0-0-xxxxx, are valid."""

_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SOLID = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"),
    *("4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """A kind of host.

    Attributes:
        accelerator: The label cloud.google.com/gke-tpu-accelerator of its nodes.
        machine_type: The machine type of its node pools.
        chips: The number of chips of a host.
        topologies: The topologies of slices of such hosts, which are the values of the label
            cloud.google.com/gke-tpu-topology.
        multislice: True if several slices can be one job.
    """

    accelerator: str
    machine_type: str
    chips: int
    topologies: tuple[str, ...]
    multislice: bool = True

    def hosts(self, topology: str) -> int:
        """Returns the number of hosts of a slice."""
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
"""The machines by the name of the TPU."""


def machine_of(tpu: str, topology: str, slices: int = 1) -> Machine:
    """Returns the kind of host on which a slice runs.

    Args:
        tpu: A name in ``MACHINES``.
        topology: The topology of a slice, in chips.
        slices: The number of slices that are one job.

    Raises:
        UsageError: If there is no such topology, or GKE cannot join such slices: it does not join
            slices of TPU v3, nor slices of one host.
    """
    allowed = {name: machine for machine in MACHINES[tpu] for name in machine.topologies}
    if topology not in allowed:
        raise UsageError(f"there is no {tpu} {topology!r}: allowed are {', '.join(allowed)}")
    machine = allowed[topology]
    if slices > 1 and (not machine.multislice or machine.hosts(topology) == 1):
        raise UsageError(
            f"{slices} slices of {tpu} {topology} cannot be one job: they need several hosts each, "
            "and another TPU than v3"
        )
    return machine
