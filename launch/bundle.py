"""What the workers are sent: scripts, versions of packages, and the code."""

import os
import pathlib
import shutil
import subprocess
import tarfile

from launch.errors import UsageError
from launch.job import FOLDER
from launch.shell import say

_SCRIPTS = pathlib.Path(__file__).resolve().parent / "remote"


def folder(node: str) -> pathlib.Path:
    """Where a node's bundle lies: under ``$XDG_CACHE_HOME``, by default ``~/.cache``."""
    # The specification has relative paths ignored.
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = pathlib.Path(root) if os.path.isabs(root) else pathlib.Path.home() / ".cache"
    return base / "effnetv2_jax" / "launch" / node / FOLDER


def make(
    target: pathlib.Path, *, requirements: pathlib.Path, tree: pathlib.Path | None = None
) -> None:
    """Fills the folder anew.

    Args:
        target: the folder; what was there is deleted.
        requirements: a file of exact versions.
        tree: the working tree to be shipped; None ships no code.

    Raises:
        UsageError: for a file that is not there, and a tree that git does not know.
    """
    if not requirements.is_file():
        raise UsageError(f"requirements {str(requirements)!r} is not a file")
    shutil.rmtree(target, ignore_errors=True)
    # What is in it may be nobody else's business.
    target.mkdir(parents=True, mode=0o700)
    for script in sorted(_SCRIPTS.glob("*.sh")):
        shutil.copy(script, target)
    shutil.copy(requirements, target / "requirements.txt")
    if tree is not None:
        archive = target / "code.tar.gz"
        count = _pack(tree, archive)
        say(f"code: {count} files of {tree}, {archive.stat().st_size / 1e6:.1f} MB")


def _pack(tree: pathlib.Path, archive: pathlib.Path) -> int:
    """Packs the files that git tracks, as they are now, and new ones that it does not ignore."""
    command = ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others"]
    try:
        result = subprocess.run([*command, "--exclude-standard"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(f"{str(tree)!r} is no clone of a git repository to be shipped") from error
    names = sorted({os.fsdecode(name) for name in result.stdout.split(b"\0") if name})
    count = 0
    with tarfile.open(archive, "w:gz") as tar:
        for name in names:
            path = tree / name
            # Deleted files are listed, and other repositories as folders.
            if path.is_symlink() and not path.resolve().is_relative_to(tree.resolve()):
                raise UsageError(f"{name!r} links to what is outside the repository")
            if path.is_symlink() or path.is_file():
                tar.add(path, arcname=name, recursive=False, filter=_anonymous)
                count += 1
    return count


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
