"""What gcloud says of a node and of its queued resource, and what it means for a job.

States: https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes and
https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.queuedResources.
"""

import dataclasses
import enum
from typing import Any


class Kind(enum.Enum):
    """What can be done with a node."""

    ABSENT = "there is none"
    WAITING = "it will come by itself"
    READY = "a job can run"
    LOST = "it will not come back, and has to be removed"


@dataclasses.dataclass(frozen=True)
class Condition:
    """Of a node.

    Attributes:
        kind: what can be done with it.
        text: what gcloud called it.
        workers: how many it has, where it is ready.
        accelerator_type: its own; empty where nobody said.
    """

    kind: Kind
    text: str
    workers: int = 0
    accelerator_type: str = ""


# Others, also those that are yet to be invented, have to be removed: a job does not run there.
_NODE = {
    "READY": Kind.READY,
    "CREATING": Kind.WAITING,
    "STARTING": Kind.WAITING,
    "RESTARTING": Kind.WAITING,
    "REIMAGING": Kind.WAITING,
}
_QUEUED = {
    "ACTIVE": Kind.READY,
    "CREATING": Kind.WAITING,
    "ACCEPTED": Kind.WAITING,
    "WAITING_FOR_RESOURCES": Kind.WAITING,
    "PROVISIONING": Kind.WAITING,
}
WITHOUT_QUEUED = "node without its queued resource"
_MAINTENANCE = "UNHEALTHY_MAINTENANCE"


def condition(
    node: dict[str, Any] | None, queued: dict[str, Any] | None = None, *, is_queued: bool = False
) -> Condition:
    """Judges a node.

    Args:
        node: what gcloud describes; None where there is none.
        queued: the queued resource, likewise.
        is_queued: whether there has to be one.
    """
    if queued is None and is_queued and node is not None:
        return Condition(Kind.LOST, WITHOUT_QUEUED)
    if queued is not None:
        state = queued.get("state", {}).get("state", "STATE_UNSPECIFIED")
        kind = _QUEUED.get(state, Kind.LOST)
        if kind is not Kind.READY:
            return Condition(kind, f"queued resource {state}")
        if node is None:
            return Condition(Kind.LOST, "queued resource ACTIVE, but its node is gone")
    if node is None:
        return Condition(Kind.ABSENT, "not there")
    state = node.get("state", "STATE_UNSPECIFIED")
    kind, text = _NODE.get(state, Kind.LOST), f"node {state}"
    if node.get("health") == _MAINTENANCE:
        kind, text = Kind.LOST, f"{text}, {_MAINTENANCE}"
    return Condition(
        kind, text, len(node.get("networkEndpoints", [])), node.get("acceleratorType", "")
    )
