"""What is done on the workers of a node, all at once."""

import dataclasses
import pathlib

from launch import bundle, job
from launch.gcloud import Node
from launch.job import FOLDER, Job, Report
from launch.shell import Shell, say

_ATTEMPTS = 3
"""Of what may run again: connections fail now and then, most of all just after the start."""

_LAST_LINES = 20


@dataclasses.dataclass(frozen=True)
class Workers:
    """The workers of a node, and the job that they are for.

    Attributes:
        node: whose workers they are.
        shell: runs gcloud.
        job: what runs on them.
        requirements: a file of exact versions of packages.
        tree: the working tree that is shipped.
    """

    node: Node
    shell: Shell
    job: Job
    requirements: pathlib.Path
    tree: pathlib.Path

    @property
    def _folder(self) -> pathlib.Path:
        return bundle.folder(f"{self.node.name}.{self.node.zone}")

    def pack(self) -> None:
        """Makes what ``setup`` ships: once, as a job goes on with the code that it began with.

        Raises:
            UsageError: where that cannot be made.
        """
        if not self.shell.dry_run:
            tree = None if self.job.git_ref else self.tree
            bundle.make(self._folder, requirements=self.requirements, tree=tree)

    def setup(self) -> None:
        """Ships the code and installs what it needs; packages that are there stay."""
        self.shell.run(self.node.scp([str(self._folder)], ":", recurse=True), _ATTEMPTS)
        self.shell.run(self.node.ssh(self.job.setup()), _ATTEMPTS)

    def start(self) -> None:
        """Starts the job on every worker where it does not run yet."""
        self._ship_environment()
        self.shell.run(self.node.ssh(self.job.start()), _ATTEMPTS)

    def _ship_environment(self) -> None:
        # A file, as there may be secrets: commands are printed, and seen by other users.
        path = self._folder / "environment"
        if not self.shell.dry_run:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            path.write_text(self.job.environment_file())
            names = ", ".join(self.job.environment) or "none"
            say(f"environment: {names}, in {path}, which is deleted when it is copied")
        try:
            self.shell.run(self.node.scp([str(path)], f":{FOLDER}/environment"), _ATTEMPTS)
        finally:
            path.unlink(missing_ok=True)

    def reports(self) -> list[Report]:
        """What the workers say of the job; empty in a dry run."""
        output = self.shell.ask(self.node.ssh(job.report_command()), _ATTEMPTS)
        return job.read_reports(output or "")

    def stop(self) -> None:
        """Asks the job to save and stop, and waits until it has."""
        self.shell.run(self.node.ssh(job.stop_command()))

    def show_log(self) -> None:
        """Shows the end of all logs."""
        self.shell.run(self.node.ssh(job.log_command(_LAST_LINES)))
