"""Prepares and runs a job on all workers of a node at once."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import tarfile

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.files import cache_folder
from launch import job
from launch.gcloud import Node
from launch.job import FOLDER, Job, Report
from launch.shell import Shell, say

_ATTEMPTS = 3
"""For calls that may run twice: connections fail now and then, most of all after the start."""

_LAST_LINES = 20

_SCRIPTS = pathlib.Path(__file__).resolve().parent / "remote"


@dataclasses.dataclass(frozen=True)
class Workers:
    """The workers of a node, and the job for them.

    Attributes:
        node: The node.
        shell: The shell that runs gcloud.
        job: The job.
        requirements: A file with exact versions of packages.
        tree: The working tree that is shipped.
    """

    node: Node
    shell: Shell
    job: Job
    requirements: pathlib.Path
    tree: pathlib.Path

    @property
    def _folder(self) -> pathlib.Path:
        return cache_folder() / "launch" / f"{self.node.name}.{self.node.zone}" / FOLDER

    def pack(self) -> None:
        """Makes the bundle that ``setup`` ships.

        It is made once, because a job goes on with the code that it began with.

        Raises:
            UsageError: If the bundle cannot be made.
        """
        if not self.shell.dry_run:
            tree = None if self.job.git_ref else self.tree
            make_bundle(self._folder, requirements=self.requirements, tree=tree)

    def setup(self) -> None:
        """Ships the code and installs the packages that it needs, unless they are there."""
        self.shell.run(self.node.scp([str(self._folder)], ":", recurse=True), _ATTEMPTS)
        self.shell.run(self.node.ssh(self.job.setup()), _ATTEMPTS)

    def start(self) -> None:
        """Starts the job on every worker on which it does not run yet."""
        # The environment travels as a file, because commands are printed and other users see
        # them, and there may be secrets in it.
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
        self.shell.run(self.node.ssh(self.job.start()), _ATTEMPTS)

    def reports(self) -> list[Report]:
        """Returns each worker's report on the job; empty in a dry run."""
        output = self.shell.ask(self.node.ssh(job.report_command()), _ATTEMPTS)
        return job.read_reports(output or "")

    def stop(self) -> None:
        """Asks the job to save and stop, and waits until it has."""
        self.shell.run(self.node.ssh(job.stop_command()))

    def show_log(self) -> None:
        """Shows the end of every worker's log."""
        self.shell.run(self.node.ssh(job.log_command(_LAST_LINES)))


def make_bundle(
    target: pathlib.Path, *, requirements: pathlib.Path, tree: pathlib.Path | None = None
) -> None:
    """Fills a folder with everything that workers are sent: scripts, versions, and the code.

    Args:
        target: The folder; its old contents are deleted.
        requirements: A file with exact versions of packages.
        tree: The working tree to ship; None ships no code.

    Raises:
        UsageError: If a file is missing, or the tree is not a git repository.
    """
    if not requirements.is_file():
        raise UsageError(f"requirements {str(requirements)!r} is not a file")
    shutil.rmtree(target, ignore_errors=True)
    # Other users of this machine may not read it.
    target.mkdir(parents=True, mode=0o700)
    for script in sorted(_SCRIPTS.glob("*.sh")):
        shutil.copy(script, target)
    shutil.copy(requirements, target / "requirements.txt")
    if tree is not None:
        archive = target / "code.tar.gz"
        count = _pack(tree, archive)
        say(f"code: {count} files of {tree}, {archive.stat().st_size / 1e6:.1f} MB")


def _pack(tree: pathlib.Path, archive: pathlib.Path) -> int:
    """Packs all files that git tracks, as they are now, and new ones that it does not ignore."""
    command = ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others"]
    try:
        result = subprocess.run([*command, "--exclude-standard"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(f"{str(tree)!r} is not a git repository, so it cannot be shipped") from (
            error
        )
    names = sorted({os.fsdecode(name) for name in result.stdout.split(b"\0") if name})
    count = 0
    with tarfile.open(archive, "w:gz") as tar:
        for name in names:
            path = tree / name
            # git lists deleted files too, and other repositories as folders.
            if path.is_symlink() and not path.resolve().is_relative_to(tree.resolve()):
                raise UsageError(f"{name!r} is a link to a file outside the repository")
            if path.is_symlink() or path.is_file():
                tar.add(path, arcname=name, recursive=False, filter=_anonymous)
                count += 1
    return count


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
