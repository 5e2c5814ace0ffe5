"""Brings a job to its end on nodes that may be taken away."""

import contextlib
import dataclasses
import time

from launch.gcloud import Kind
from launch.job import Outcome, overall
from launch.lifecycle import Lifecycle
from launch.shell import CallFailed, say
from launch.workers import Workers

_HOPELESS = ("PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_ARGUMENT", "unrecognized arguments")
"""Words by which gcloud says that another attempt would fail, too."""

_WELL = (Outcome.RUNNING, Outcome.DONE)

_MOST_FAILED_LOOKS = 20
"""The number of failed looks in a row that ends the watching; the job itself goes on."""


class Ended(Exception):
    """A job that did not end as wanted; the message is one sentence that says how it did."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that may be spent on a job.

    Attributes:
        restarts: The number of nodes after the first, plus starts on a node after the first.
        hours: The time that all nodes together may be ready; None for no limit.
    """

    restarts: int = 0
    hours: float | None = None


@dataclasses.dataclass(frozen=True)
class Pace:
    """Waiting times in seconds.

    Attributes:
        poll: The time between two looks at a job.
        settle: The time for which a job that ended may wait to see whether its node is lost. gcloud
            says it later than the job knows it.
        backoff: The pause before another node, doubled for each node that got no job to run.
        longest_backoff: The longest of these pauses.
    """

    poll: float = 30.0
    settle: float = 180.0
    backoff: float = 30.0
    longest_backoff: float = 1800.0

    def backoff_after(self, failures: int) -> float:
        """Returns the pause after a number of failures in a row, at least 1."""
        # The exponent is limited, because 2.0 to the power of a large number overflows.
        return min(self.backoff * 2 ** min(failures - 1, 30), self.longest_backoff)


class _Lost(Exception):
    """A node on which no job can run any more; the message says why."""


class KeepAlive:
    """Brings a job to its end, on one node after the other.

    Args:
        lifecycle: The calls for the node as a whole.
        workers: The workers of the node.
        limits: The most that may be spent.
        pace: The waiting times.
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
        """Returns when the job is done; uses the node if it exists already.

        Raises:
            Ended: If the job failed, or the limits did not allow another node.
            CallFailed: If a call of gcloud failed that would also fail with another node.
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
        """Makes the calls of ``run`` once, for a dry run."""
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
            # A worker that is gone takes the others with it sooner or later, or they wait for it.
            if len(reports) == workers and all(r.outcome in _WELL for r in reports):
                uneven_since = None
            elif uneven_since is None:
                uneven_since = time.monotonic()
            elif time.monotonic() - uneven_since > self._pace.settle:
                say("not all workers run the job: stopping the others")
                self._stop()

    def _go_on(self, outcome: Outcome) -> None:
        """Starts the job again after it ended early on a node that stays."""
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
        """Raises _Lost if gcloud says within ``settle`` seconds that the node is lost."""
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
        """Stops the clock of a node that is no longer ready."""
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
