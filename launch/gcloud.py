"""gcloud as data: a node, the commands that make, describe and remove it, and what they answer.

Commands and flags: https://cloud.google.com/sdk/gcloud/reference/compute/tpus. States:
https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes and
https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.queuedResources.
"""

import dataclasses
import enum
import re
from collections.abc import Sequence
from typing import Any

from effnetv2_jax.runtime.errors import UsageError
from launch.accelerators import Accelerator

# RFC 1035, as gcloud wants it for TPUs.
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_ZONE = re.compile(r"[a-z]+-[a-z]+[0-9]+-[a-z]")
_PROJECT = re.compile(r"([a-z][-a-z0-9.]*:)?[a-z][-a-z0-9]{4,28}[a-z0-9]")
_RUNTIME_VERSION = re.compile(r"[a-z0-9][-a-z0-9.]*")
_DURATION = re.compile(r"([0-9]+[smhd])+")


@dataclasses.dataclass(frozen=True)
class Node:
    """A TPU node, made directly or through a queued resource of the same name.

    Attributes:
        name: The name of the node and of its queued resource.
        zone: The zone, such as ``europe-west4-a``.
        project: The project; empty for gcloud's default.
        accelerator: The type to make; None for a node that exists.
        runtime_version: The image of the VMs; empty for the accelerator's own.
        queued: Make the node through a queued resource.
        spot: Make a node that is cheaper and may be taken away.
        reserved: Make the node from a reservation.
        valid_until: The longest time that a queued resource may wait, such as ``6h``; empty for no
            limit.
        track: The track of gcloud's commands: ``alpha``, or empty.
        create_flags: More flags for gcloud's create, such as ``--network=NAME``.
        ssh_flags: More flags for gcloud's ssh and scp, such as ``--internal-ip``.

    Raises:
        UsageError: For the first value that gcloud would refuse, or that contradicts another.
    """

    name: str
    zone: str
    project: str = ""
    accelerator: Accelerator | None = None
    runtime_version: str = ""
    queued: bool = False
    spot: bool = False
    reserved: bool = False
    valid_until: str = ""
    track: str = ""
    create_flags: Sequence[str] = ()
    ssh_flags: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check("name", self.name, _NAME, "lower-case letters, digits and - (at most 63)")
        _check("zone", self.zone, _ZONE, "REGION-LETTER, as in europe-west4-a")
        if self.project:
            _check("project", self.project, _PROJECT, "a project's id, as in my-project-1")
        if self.runtime_version:
            allowed = "an image, as in tpu-ubuntu2204-base"
            _check("runtime_version", self.runtime_version, _RUNTIME_VERSION, allowed)
        if self.valid_until:
            _check("valid_until", self.valid_until, _DURATION, "a duration, as in 90m or 6h")
        if self.valid_until and not self.queued:
            raise UsageError("valid_until limits a queued resource: use it with --queued")
        if self.track not in ("", "alpha"):
            raise UsageError(f"track must be alpha or left out, got {self.track!r}")
        if self.spot and self.reserved:
            raise UsageError("spot and reserved exclude each other: leave out one of them")
        for name in ("create_flags", "ssh_flags"):
            for flag in getattr(self, name):
                if not flag.startswith("--"):
                    raise UsageError(f"{name} must be flags of gcloud, --NAME=VALUE, got {flag!r}")

    def create(self) -> list[str]:
        """Returns the command that makes the node, or the queued resource that will."""
        assert self.accelerator is not None
        version = self.runtime_version or self.accelerator.runtime_version
        kind = f"--accelerator-type={self.accelerator.type}"
        tier = [*(["--spot"] if self.spot else []), *(["--reserved"] if self.reserved else [])]
        if not self.queued:
            flags = [kind, f"--version={version}", *tier, *self.create_flags]
            return self._call("tpu-vm", "create", self.name, *flags)
        limit = [f"--valid-until-duration={self.valid_until}"] if self.valid_until else []
        flags = [f"--node-id={self.name}", kind, f"--runtime-version={version}"]
        flags += [*tier, *limit, *self.create_flags]
        return self._call("queued-resources", "create", self.name, *flags)

    def describe(self) -> list[str]:
        """Returns the command that describes the node as JSON."""
        return self._call("tpu-vm", "describe", self.name, "--format=json")

    def describe_queued(self) -> list[str]:
        """Returns the command that describes the queued resource as JSON."""
        return self._call("queued-resources", "describe", self.name, "--format=json")

    def delete(self) -> list[str]:
        """Returns the command that removes the node, or its queued resource together with it."""
        if self.queued:
            return self._call("queued-resources", "delete", self.name, "--force")
        return self._call("tpu-vm", "delete", self.name)

    def ssh(self, command: str = "", worker: str = "all") -> list[str]:
        """Returns the command that runs another command on workers, or a shell on one of them.

        Args:
            command: The other command, as a shell takes it; empty for a shell.
            worker: The number of a worker, from 0, or ``all``.
        """
        words = [f"--command={command}"] if command else []
        return self._call("tpu-vm", "ssh", self.name, f"--worker={worker}", *words, *self.ssh_flags)

    def scp(
        self, sources: Sequence[str], destination: str, worker: str = "all", recurse: bool = False
    ) -> list[str]:
        """Returns the command that copies files to workers, or from one.

        Args:
            sources: Paths; those on a worker begin with ``:``.
            destination: A path, which begins with ``:`` if it is on workers.
            worker: The number of a worker, from 0, or ``all``.
            recurse: Copy folders with their contents.
        """
        paths = [self.name + path if path.startswith(":") else path for path in sources]
        target = self.name + destination if destination.startswith(":") else destination
        flags = [f"--worker={worker}", *(["--recurse"] if recurse else []), *self.ssh_flags]
        return self._call("tpu-vm", "scp", *paths, target, *flags)

    def _call(self, group: str, verb: str, *arguments: str) -> list[str]:
        place = [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]
        track = [self.track] if self.track else []
        return ["gcloud", *track, "compute", "tpus", group, verb, *arguments, *place, "--quiet"]


def _check(name: str, value: str, pattern: re.Pattern[str], allowed: str) -> None:
    if not pattern.fullmatch(value):
        raise UsageError(f"{name} must be {allowed}, got {value!r}")


class Kind(enum.Enum):
    """The four ways in which a node can stand."""

    ABSENT = "there is none"
    WAITING = "it will come by itself"
    READY = "a job can run"
    LOST = "it will not come back, and has to be removed"


@dataclasses.dataclass(frozen=True)
class Condition:
    """How a node stands.

    Attributes:
        kind: One of four ways.
        text: gcloud's own words.
        workers: The number of workers of a node that is ready.
        accelerator_type: The node's type; empty if gcloud did not say.
    """

    kind: Kind
    text: str
    workers: int = 0
    accelerator_type: str = ""


# A node in any other state, also in one that is new, has to be removed: no job runs there.
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
    """Returns how a node stands, from gcloud's descriptions.

    Args:
        node: The description of the node; None if there is none.
        queued: The description of the queued resource; None if there is none.
        is_queued: True if the node must have a queued resource.
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
