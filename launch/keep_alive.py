"""A job brought to its end on nodes that may be taken away."""

import contextlib
import dataclasses
import time

from launch.errors import CallFailed, Ended
from launch.job import Outcome, overall
from launch.lifecycle import Lifecycle
from launch.shell import say
from launch.states import Kind
from launch.workers import Workers

_HOPELESS = ("PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_ARGUMENT", "unrecognized arguments")
"""In what gcloud says where another attempt would end alike."""

_WELL = (Outcome.RUNNING, Outcome.DONE)

_MOST_FAILED_LOOKS = 20
"""In a row; the job does not mind that nobody watches."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much may be spent on a job.

    Attributes:
        restarts: nodes after the first, and starts on a node after the first.
        hours: that nodes may be ready, all of them together; None for no limit.
    """

    restarts: int = 0
    hours: float | None = None


@dataclasses.dataclass(frozen=True)
class Pace:
    """How patient it is, in seconds.

    Attributes:
        poll: between two looks at a job.
        settle: that a job which ended may wait for its node to be seen as lost: gcloud says it
            later than the job knows it.
        backoff: before another node, doubled with every one that did not get a job to run.
        longest_backoff: what that ends at.
    """

    poll: float = 30.0
    settle: float = 180.0
    backoff: float = 30.0
    longest_backoff: float = 1800.0

    def backoff_after(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row, at least 1."""
        # 2 to the power of a large number would be no float.
        return min(self.backoff * 2 ** min(failures - 1, 30), self.longest_backoff)


class _Lost(Exception):
    """The node is no longer one that a job can run on; its message says why."""


class KeepAlive:
    """Brings a job to its end, on one node after the other.

    Args:
        lifecycle: of the node.
        workers: of the same.
        limits: how often and how long.
        pace: how patient.
    """

    def __init__(self, lifecycle: Lifecycle, workers: Workers, limits: Limits, pace: Pace):
        self._lifecycle = lifecycle
        self._workers = workers
        self._limits = limits
        self._pace = pace
        self._restarts = 0
        self._failures = 0
        self._ready_since: float | None = None
        self._ready_seconds = 0.0

    def run(self) -> None:
        """Returns when the job is done; a node that is there already is used.

        Raises:
            Ended: where the job failed, or the limits did not allow another node.
            CallFailed: where gcloud failed at what another node would not mend.
        """
        while True:
            try:
                self._run_on_a_node()
                return
            except _Lost as lost:
                self._rest()
                self._failures += 1
                self._count_restart(str(lost))
            self._lifecycle.delete()
            seconds = self._pace.backoff_after(self._failures)
            say(f"another node in {seconds:.0f} s")
            time.sleep(seconds)

    def plan(self) -> None:
        """Goes through the calls that ``run`` would make; for a dry run."""
        lifecycle, workers = self._lifecycle, self._workers
        lifecycle.condition()
        lifecycle.create()
        workers.setup()
        workers.start()
        workers.reports()

    def _run_on_a_node(self) -> None:
        now = self._lifecycle.condition()
        is_new = now.kind is Kind.ABSENT
        if is_new:
            self._create()
        now = self._lifecycle.wait_until_ready()
        if now.kind is not Kind.READY:
            raise _Lost(now.text)
        self._ready_since = time.monotonic()
        if not is_new and overall(self._workers.reports(), now.workers) is Outcome.RUNNING:
            say("the job runs already: watching it")
        else:
            self._bring_up()
        self._failures = 0
        self._watch(now.workers)

    def _create(self) -> None:
        try:
            self._lifecycle.create()
        except CallFailed as error:
            if not self._limits.restarts or any(word in error.text for word in _HOPELESS):
                raise
            raise _Lost(str(error)) from error

    def _bring_up(self) -> None:
        """Starts the job on the node."""
        try:
            self._workers.setup()
            self._workers.start()
        except CallFailed:
            self._raise_if_lost()
            raise

    def _watch(self, workers: int) -> None:
        """Returns when the job is done."""
        failed_looks = 0
        last = ""
        uneven_since: float | None = None
        while True:
            time.sleep(self._pace.poll)
            self._check_budget()
            try:
                now = self._lifecycle.condition()
                if now.kind is Kind.WAITING:
                    continue
                if now.kind is not Kind.READY:
                    raise _Lost(now.text)
                reports = self._workers.reports()
            except CallFailed as error:
                failed_looks += 1
                if failed_looks == _MOST_FAILED_LOOKS:
                    raise
                say(f"{error}; looking again")
                continue
            failed_looks = 0
            summary = "; ".join(dict.fromkeys(report.text for report in reports))
            if summary != last:
                say(f"{time.strftime('%H:%M:%S')} {now.text}, job: {summary}")
                last = summary
            outcome = overall(reports, workers)
            if outcome is Outcome.DONE:
                return
            if outcome is not Outcome.RUNNING:
                self._go_on(outcome)
                continue
            # One that has gone takes the others with it, sooner or later, or they wait for it.
            if len(reports) == workers and all(r.outcome in _WELL for r in reports):
                uneven_since = None
            elif uneven_since is None:
                uneven_since = time.monotonic()
            elif time.monotonic() - uneven_since > self._pace.settle:
                say("not all workers run the job: stopping the others")
                self._stop()

    def _go_on(self, outcome: Outcome) -> None:
        """Starts a job again that ended early on a node that stays."""
        if outcome is Outcome.STOPPED:
            raise Ended("somebody has stopped the job; the same command goes on")
        self._raise_if_lost()
        if outcome is Outcome.FAILED:
            with contextlib.suppress(CallFailed):
                self._workers.show_log()
            raise Ended(f"the job failed; its logs are in {self._workers.job.workdir}/logs")
        self._count_restart(f"the job is {outcome.value} on a node that is ready")
        self._bring_up()

    def _raise_if_lost(self) -> None:
        """Gives gcloud time to say that the node is lost."""
        deadline = time.monotonic() + self._pace.settle
        while True:
            try:
                now = self._lifecycle.condition()
                if now.kind is not Kind.READY:
                    raise _Lost(now.text)
            except CallFailed as error:
                say(f"{error}; looking again")
            if time.monotonic() > deadline:
                return
            time.sleep(min(self._pace.poll, self._pace.settle))

    def _count_restart(self, reason: str) -> None:
        if self._restarts >= self._limits.restarts:
            if not self._limits.restarts:
                raise Ended(f"{reason}: the same command goes on, and --keep_alive does by itself")
            raise Ended(f"{reason}: all {self._restarts} restarts are used up")
        self._restarts += 1
        say(f"{reason}: restart {self._restarts} of at most {self._limits.restarts}")

    def _rest(self) -> None:
        """The node is no longer ready: its clock stops."""
        if self._ready_since is not None:
            self._ready_seconds += time.monotonic() - self._ready_since
            self._ready_since = None

    def _stop(self) -> None:
        try:
            self._workers.stop()
        except CallFailed as error:
            say(str(error))

    def _check_budget(self) -> None:
        if self._limits.hours is None or self._ready_since is None:
            return
        spent = self._ready_seconds + time.monotonic() - self._ready_since
        if spent < self._limits.hours * 3600:
            return
        say(f"{spent / 3600:.2f} h of nodes: the budget is spent, stopping the job")
        self._stop()
        self._lifecycle.delete()
        raise Ended(f"the budget of {self._limits.hours} h is spent; the same command goes on")
