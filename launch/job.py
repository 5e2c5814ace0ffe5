"""A job on the workers: the commands that control it, and the reports that come back."""

import dataclasses
import enum
import re
import shlex
from collections.abc import Mapping, Sequence

from effnetv2_jax.runtime.errors import UsageError

FOLDER = "effnetv2_jax_job"
"""The folder with scripts, log and outcome, in the home of every worker."""

PYTHON, BUCKETS = "../effnetv2_jax_venv/bin/python", "../gcs"
"""The interpreter and the folder of buckets, as seen from the code. They are relative, because all
processes of a run must be given the same workdir."""

_BUCKET = re.compile(r"gs://([a-z0-9][-_.a-z0-9]{1,220}[a-z0-9])((?:/[^/\x00-\x1f\x7f]+)+)/?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PYTHON_VERSION = re.compile(r"3\.[0-9]+")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
# No password and no token may be in it, because logs show it.
_GIT_URL = re.compile(r"https://[^@\s]+|ssh://([\w-]+@)?[^@\s]+|[\w-]+@[^@:\s]+:[^@\s]+")
_GIT_REF = re.compile(r"[A-Za-z0-9_][-./A-Za-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class Job:
    """A program with its arguments, the same on every worker.

    Attributes:
        workdir: ``gs://BUCKET/PATH``, or a path that every worker sees.
        program: The module to run, which has a flag ``--workdir``.
        arguments: The arguments of the program.
        environment: More environment variables for the program.
        python: The version of the interpreter.
        git_url: The repository to clone; empty if the code is shipped.
        git_ref: The branch, tag or commit to check out.

    Raises:
        UsageError: For the first value that could not work.
    """

    workdir: str
    program: str = "effnetv2_jax.train"
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    python: str = "3.11"
    git_url: str = ""
    git_ref: str = ""

    def __post_init__(self) -> None:
        self._split_workdir()
        for name, pattern, allowed in (
            ("program", _MODULE, "a module, as in effnetv2_jax.train"),
            ("python", _PYTHON_VERSION, "a version, as in 3.11"),
        ):
            if not pattern.fullmatch(getattr(self, name)):
                raise UsageError(f"{name} must be {allowed}, got {getattr(self, name)!r}")
        if self.git_ref:
            if not _GIT_REF.fullmatch(self.git_ref):
                raise UsageError(f"git_ref must be a branch, tag or commit, got {self.git_ref!r}")
            if not _GIT_URL.fullmatch(self.git_url):
                # The value is not shown: there may be a password in it.
                raise UsageError(
                    "git_url must be https://HOST/PATH, ssh://… or USER@HOST:PATH, without a "
                    "password in it"
                )
        elif self.git_url:
            raise UsageError("git_url needs --git_ref: the branch, tag or commit to run")
        for argument in self.arguments:
            if argument.partition("=")[0] in ("--workdir", "-workdir"):
                raise UsageError("the program gets its workdir from --workdir before the --")

    def _split_workdir(self) -> tuple[str, str]:
        if not self.workdir.startswith("gs:"):
            if not self.workdir.startswith("/"):
                raise UsageError(
                    "workdir must be gs://BUCKET/PATH, or an absolute path that all workers "
                    f"share, got {self.workdir!r}"
                )
            return "", self.workdir
        match = _BUCKET.fullmatch(self.workdir)
        if match is None or {".", ".."} & set(match[2].split("/")):
            raise UsageError(
                "workdir must be gs://bucket/path, the bucket's name in lower case and the path "
                f"without ., .. and control characters, got {self.workdir!r}"
            )
        return match[1], f"{BUCKETS}/{match[1]}{match[2]}"

    @property
    def bucket(self) -> str:
        """The bucket to mount; empty if the workdir is not in one."""
        return self._split_workdir()[0]

    @property
    def folder(self) -> str:
        """The workdir as the program sees it."""
        return self._split_workdir()[1]

    def setup(self) -> str:
        """Returns the command that makes a worker ready; it may run again."""
        variables = {"PYTHON_VERSION": self.python, "BUCKET": self.bucket}
        if self.git_ref:
            variables |= {"GIT_URL": self.git_url, "GIT_REF": self.git_ref}
        return _script("setup", variables)

    def start(self) -> str:
        """Returns the command that starts the job on a worker, unless it runs there."""
        words = [PYTHON, "-m", self.program, *self.arguments, f"--workdir={self.folder}"]
        return _script("start", {"WORKDIR": self.folder}, words)

    def environment_file(self) -> str:
        """Returns the lines that a shell reads before the program starts."""
        return "".join(f"export {n}={shlex.quote(x)}\n" for n, x in self.environment.items())


def report_command() -> str:
    """Returns the command by which a worker prints its line for ``read_reports``.

    A worker that has not been set up prints nothing.
    """
    return f"test ! -e {FOLDER}/report.sh || {_script('report', {})}"


def stop_command() -> str:
    """Returns the command that asks a worker's job to save and stop, and waits until it has."""
    return _script("stop", {})


def log_command(lines: int, follow: bool = False) -> str:
    """Returns the command that shows the end of a worker's log."""
    return shlex.join(["tail", f"--lines={lines}", *(["-F"] if follow else []), f"{FOLDER}/log"])


def _script(name: str, variables: Mapping[str, str], arguments: Sequence[str] = ()) -> str:
    settings = [f"{variable}={value}" for variable, value in variables.items() if value]
    prefix = ["env", *settings] if settings else []
    return shlex.join([*prefix, "bash", f"{FOLDER}/{name}.sh", *arguments])


def read_environment(words: Sequence[str], own: Mapping[str, str]) -> dict[str, str]:
    """Returns environment variables from words ``NAME=VALUE``, or ``NAME`` for the value here.

    >>> read_environment(["A", "B=2"], {"A": "1"})
    {'A': '1', 'B': '2'}

    Args:
        words: The user's words.
        own: The environment of this process.

    Raises:
        UsageError: If a word does not begin with a name, or a name has no value here.
    """
    environment = {}
    for word in words:
        name, is_given, value = word.partition("=")
        if not _VARIABLE.fullmatch(name):
            raise UsageError(f"env must be NAME=VALUE or NAME, got the name {name!r}")
        if not is_given and name not in own:
            raise UsageError(f"env {name} has no value here: set it, or say {name}=VALUE")
        environment[name] = value if is_given else own[name]
    return environment


class Outcome(enum.Enum):
    """How a job stands on one worker or on all.

    For several workers, the first of these that any worker has counts. A worker may have failed
    because another one was interrupted or is missing, that is, went down without a word.
    ``STOPPED`` means that somebody stopped the job.
    """

    RUNNING = "running"
    MISSING = "missing"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    STOPPED = "stopped"
    DONE = "done"


@dataclasses.dataclass(frozen=True)
class Report:
    """A worker's report on its job.

    Attributes:
        host: The worker's name.
        outcome: How its job stands.
        text: The same with an exit code, and how far the run is.
    """

    host: str
    outcome: Outcome
    text: str


def read_reports(output: str) -> list[Report]:
    """Returns the reports that ``report_command`` printed on all workers, sorted by host."""
    reports = []
    for line in output.splitlines():
        words = line.split("\t")
        if words[0] != FOLDER or len(words) != 4:
            continue  # a line of gcloud or ssh
        _, host, outcome, progress = words
        text = f"{outcome} ({progress})" if progress else outcome
        reports.append(Report(host, Outcome(outcome.split()[0]), text))
    return sorted(reports, key=lambda report: report.host)


def overall(reports: Sequence[Report], workers: int) -> Outcome:
    """Returns how the job stands on a node; it is running while it runs on any worker."""
    found = {report.outcome for report in reports}
    if len(reports) < workers or not reports:
        found.add(Outcome.MISSING)
    return next(outcome for outcome in Outcome if outcome in found)
