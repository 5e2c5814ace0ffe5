"""Makes, watches and removes a node, and says what is left of it if something goes wrong."""

import dataclasses
import json
import shlex
import time
from collections.abc import Sequence
from typing import Any

from effnetv2_jax.runtime.errors import UsageError
from launch.gcloud import WITHOUT_QUEUED, Condition, Kind, Node, condition
from launch.shell import NOT_FOUND, CallFailed, Shell, say

_ASK_ATTEMPTS = 3
_DELETE_ATTEMPTS = 8


@dataclasses.dataclass(frozen=True)
class Lifecycle:
    """The calls that concern a node as a whole.

    Attributes:
        node: The node.
        shell: The shell that runs gcloud.
        poll_seconds: The time between two looks at a node that is awaited.
    """

    node: Node
    shell: Shell
    poll_seconds: float = 30.0

    def condition(self) -> Condition:
        """Returns how the node stands now; raises CallFailed if gcloud cannot say."""
        queued = self._describe(self.node.describe_queued()) if self.node.queued else None
        node = self._describe(self.node.describe())
        return condition(node, queued, is_queued=self.node.queued)

    def refuse_others(self) -> None:
        """Raises UsageError if another node has the name: it must not be used or deleted."""
        found = self.condition()
        wanted = self.node.accelerator
        if wanted and found.accelerator_type not in ("", wanted.type):
            raise UsageError(
                f"node {self.node.name!r} exists, and is a {found.accelerator_type} instead of "
                f"{wanted.type}: use another name"
            )
        if self.node.queued and found.text == WITHOUT_QUEUED:
            raise UsageError(
                f"node {self.node.name!r} exists, but no queued resource of that name: leave out "
                "--queued, or use another name"
            )

    def _describe(self, command: Sequence[str]) -> dict[str, Any] | None:
        try:
            output = self.shell.ask(command, _ASK_ATTEMPTS)
        except CallFailed as error:
            if NOT_FOUND in error.text:
                return None
            raise
        if output is None:
            return None
        try:
            return json.loads(output)
        except ValueError as error:
            raise CallFailed(shlex.join(command), 0, f"no JSON: {output[:200]}") from error

    def create(self) -> None:
        """Makes the node, or its queued resource; returns before the node is ready."""
        self.shell.run(self.node.create())

    def wait_until_ready(self) -> Condition:
        """Waits while the node may still come; returns its condition, ready or not."""
        said = ""
        while True:
            now = self.condition()
            if now.kind is not Kind.WAITING:
                return now
            if now.text != said:
                say(f"waiting: {now.text}")
                said = now.text
            time.sleep(self.poll_seconds)

    def delete(self) -> None:
        """Removes the node and its queued resource, and checks that they are gone.

        Raises:
            CallFailed: If that failed several times.
        """
        if self.shell.dry_run:
            self.shell.run(self.node.delete())
            return
        for attempt in range(_DELETE_ATTEMPTS):
            try:
                # Asked each time: a node may not be in a state to be deleted yet.
                command = self._removal()
                if command is None:
                    return
                self.shell.run(command)
            except CallFailed as error:
                if attempt + 1 == _DELETE_ATTEMPTS:
                    raise
                say(f"{error}; trying again")
                time.sleep(self.shell.pause * 2**attempt)
        if (command := self._removal()) is not None:
            raise CallFailed(shlex.join(command), 0, f"{self.node.name} is still there")

    def _removal(self) -> list[str] | None:
        """Returns the command that removes what is there, or None if nothing is."""
        for queued in (True, False):
            node = dataclasses.replace(self.node, queued=queued, valid_until="")
            if self._describe(node.describe_queued() if queued else node.describe()) is not None:
                return node.delete()
        return None

    def leftovers(self) -> str:
        """Returns a sentence on what still exists, with the command that removes it."""
        try:
            command = self._removal()
        except (CallFailed, KeyboardInterrupt):
            return (
                f"{self.node.name} may still exist and cost money; remove it with: "
                f"{shlex.join(self.node.delete())}"
            )
        if command is None:
            return f"nothing is left of {self.node.name}"
        return (
            f"{self.node.name} still exists and costs money; remove it with: {shlex.join(command)}"
        )
