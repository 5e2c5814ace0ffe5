"""gcloud's calls as data: what a node is to be, and the commands that make, ask and remove it.

Commands and flags: https://cloud.google.com/sdk/gcloud/reference/compute/tpus.
"""

import dataclasses
import re
from collections.abc import Sequence

from launch.accelerators import Accelerator
from launch.errors import UsageError

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
        name: of the node, and of its queued resource.
        zone: such as ``europe-west4-a``.
        project: empty for gcloud's default.
        accelerator: None where the node is there already.
        runtime_version: of the VMs' image; empty for the accelerator's own.
        queued: whether it is asked for through a queued resource.
        spot: at the lower price, and may be taken away.
        reserved: from a reservation.
        valid_until: how long a queued resource may wait, such as ``6h``; empty for no limit.
        track: of gcloud's commands: ``alpha``, or empty.
        create_flags: more flags for gcloud's create, such as ``--network=NAME``.
        ssh_flags: more flags for gcloud's ssh and scp, such as ``--internal-ip``.

    Raises:
        UsageError: for the first value that gcloud would refuse, or that contradicts another.
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
            allowed = "as in tpu-ubuntu2204-base"
            _check("runtime_version", self.runtime_version, _RUNTIME_VERSION, allowed)
        if self.valid_until:
            _check("valid_until", self.valid_until, _DURATION, "a duration, as in 90m or 6h")
        if self.valid_until and not self.queued:
            raise UsageError("valid_until is of queued resources: use it with --queued")
        if self.track not in ("", "alpha"):
            raise UsageError(f"track must be alpha or left out, got {self.track!r}")
        if self.spot and self.reserved:
            raise UsageError("spot and reserved exclude each other")
        for name in ("create_flags", "ssh_flags"):
            for flag in getattr(self, name):
                if not flag.startswith("--"):
                    raise UsageError(f"{name} must be flags of gcloud, --NAME=VALUE, got {flag!r}")

    def create(self) -> list[str]:
        """Makes the node, or the queued resource that will."""
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
        """Tells the node's state as JSON."""
        return self._call("tpu-vm", "describe", self.name, "--format=json")

    def describe_queued(self) -> list[str]:
        """Tells the queued resource's state as JSON."""
        return self._call("queued-resources", "describe", self.name, "--format=json")

    def delete(self) -> list[str]:
        """Removes the node, and the queued resource that would make another."""
        if self.queued:
            return self._call("queued-resources", "delete", self.name, "--force")
        return self._call("tpu-vm", "delete", self.name)

    def ssh(self, command: str = "", worker: str = "all") -> list[str]:
        """Runs a command on workers, or a shell on one.

        Args:
            command: as a shell takes it; empty for a shell.
            worker: a number from 0, or ``all``.
        """
        words = [f"--command={command}"] if command else []
        return self._call("tpu-vm", "ssh", self.name, f"--worker={worker}", *words, *self.ssh_flags)

    def scp(
        self, sources: Sequence[str], destination: str, worker: str = "all", recurse: bool = False
    ) -> list[str]:
        """Copies files to workers or from one.

        Args:
            sources: paths; those on a worker begin with ``:``.
            destination: likewise.
            worker: a number from 0, or ``all``.
            recurse: folders with all that is in them.
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
