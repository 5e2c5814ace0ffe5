"""The training loop: stage after stage, with metrics, evaluation and checkpoints."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any, NoReturn, Protocol, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from effnetv2_jax.progressive import Stage
from effnetv2_jax.runtime.errors import Stopped, UsageError
from effnetv2_jax.training.feed import Feed
from effnetv2_jax.training.mesh import shard_state
from effnetv2_jax.training.observing.interval import Interval
from effnetv2_jax.training.observing.monitor import Monitor
from effnetv2_jax.training.observing.starting import Starting
from effnetv2_jax.training.preparation import Preparation, stage_scalars
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.step import TrainStep
from effnetv2_jax.training.survival.agreement import STEPS_BEHIND, Agreement
from effnetv2_jax.training.survival.bad_steps import BadSteps
from effnetv2_jax.training.survival.checkpoint import Checkpoints


class Stop(Protocol):
    """Somebody's wish that the run stops."""

    def __call__(self) -> bool: ...
    def worth_saving(self) -> None: ...


Evaluate = Callable[[TrainState, Agreement], dict[str, float] | None]


T = TypeVar("T")

_POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Cadence:
    """When things happen within a stage; at its end all of them do.

    Attributes:
        log_steps: steps between two lines of the log.
        save_steps: steps between two checkpoints.
        save_seconds: after which there is one in any case.
    """

    log_steps: int
    save_steps: int
    save_seconds: float


class Loop:
    """A run that is under way.

    Args:
        train_step: from ``step.make_train_step``.
        mesh: that batches are split over.
        preparation: of the stages, which may have begun.
        evaluate: of (state, agreement) → metrics, or None where it was given up.
        learning_rate: of (step) → rate, for the log.
        checkpoints: where the state is saved.
        bad_steps: where those are counted whose numbers are not finite.
        monitor: is told how it goes.
        cadence: of log and checkpoints.
        stop: whether this process wants the run to stop; is told when there is something to lose.
        record: what a checkpoint says beside the loop's own; where a run is resumed, the one it was
            saved with, which is where an unfinished line of the log is.
    """

    def __init__(
        self,
        train_step: TrainStep,
        *,
        mesh: Mesh,
        preparation: Preparation,
        evaluate: Evaluate,
        learning_rate: Callable[[int], float],
        checkpoints: Checkpoints,
        bad_steps: BadSteps,
        monitor: Monitor,
        cadence: Cadence,
        stop: Stop,
        record: Mapping[str, Any],
    ):
        self._train_step = train_step
        self._mesh = mesh
        self._preparation = preparation
        self._evaluate = evaluate
        self._learning_rate = learning_rate
        self._checkpoints = checkpoints
        self._bad_steps = bad_steps
        self._monitor = monitor
        self._cadence = cadence
        self._stop = stop
        self._record = record
        self._starting = Starting()
        self._interval = Interval(record.get("interval", ()))
        # As they were after the last good step.
        self._good_rows = list(self._interval.rows)
        self._agreement = Agreement(self._wishes, mesh)
        self._agreed = {"stop": False, "save": False}
        self._saved_at = time.monotonic()
        self._step = 0
        self._asked = 0

    def run(self, state: TrainState, stages: Sequence[Stage]) -> TrainState:
        """Trains from the state's step to the end of the last stage; the state is donated.

        Raises:
            Stopped: where somebody wanted that; everything is saved.
            UsageError: where too many steps in a row were left out, as their numbers were not
                finite; the state before them is saved.
        """
        self._step = first_step = int(state.step)
        remaining = [stage for stage in stages if stage.end_step > first_step]
        for stage in stages:
            # A run that ended between a stage and its evaluation.
            if stage.end_step == first_step and first_step not in self._checkpoints.scores:
                self._end_stage(state, stage)
        if not remaining:
            return state
        self._monitor.progress.start(first_step)
        try:
            for stage, following in zip(remaining, [*remaining[1:], None], strict=True):
                self._monitor.stage_begins(stage, len(stages))
                feed = self._awaited(self._preparation.prepared(stage), state)
                if following:
                    # It gets ready while this one trains.
                    self._preparation.prepared(following)
                state = self._run_stage(state, stage, feed)
        finally:
            self._preparation.close()
            self._monitor.progress.stop()
            self._monitor.writer.flush()
        return state

    def _awaited(self, future: Future[T], state: TrainState) -> T:
        """The result of what goes on in the background, unless the run is to stop before."""
        while not wait([future], _POLL_SECONDS).done:
            if self._stop():
                self._stop_here(state)
        return future.result()

    def _run_stage(self, state: TrainState, stage: Stage, feed: Feed) -> TrainState:
        scalars = stage_scalars(stage)
        # Time spent on compiling is not time spent on steps.
        self._interval = Interval(self._interval.rows)
        begin = int(state.step) + 1
        for step in range(begin, stage.end_step + 1):
            batch = feed.next(self._agreement.given_up)
            if batch is None and self._agreement.given_up():
                self._stop_here(state)
            assert batch is not None, f"the input of {stage} ended before step {step}"
            state, sums = self._train_step(state, self._agreement.attach(batch), scalars)
            if step == begin:
                self._monitor.first_step(self._starting.first_step(stage.end_step - begin + 1))
            self._stop.worth_saving()
            self._step = step
            self._interval.add(step, sums)
            self._monitor.moves(f"training step {step + 1}")
            log = step % self._cadence.log_steps == 0 or step == stage.end_step
            self._settle(leave=0 if log else STEPS_BEHIND)
            if step == stage.end_step:
                self._starting.last_step()
            if self._bad_steps.too_many:
                self._give_up(state)
            if log:
                self._log(step, stage)
            if self._agreed["stop"] and step < stage.end_step:
                self._stop_here(state)
            if step % self._cadence.save_steps == 0 or self._agreed["save"]:
                self._save(state)
        feed.close()
        with self._starting.work():
            self._end_stage(state, stage)
        return state

    def _wishes(self) -> dict[str, bool]:
        """Of this process; all processes ask themselves equally often."""
        self._asked += 1
        late = time.monotonic() - self._saved_at >= self._cadence.save_seconds
        return {
            "stop": self._stop() or self._checkpoints.reached_preemption(self._asked),
            # One clock is enough.
            "save": late and jax.process_index() == 0,
        }

    def _settle(self, leave: int = 0) -> None:
        """Waits for steps that are under way, and looks at what they returned.

        Args:
            leave: so many of the last are not waited for.
        """
        for step, sums in self._interval.fetch(leave):
            self._bad_steps.see(step, sums)
            if not self._bad_steps.in_a_row:
                self._good_rows = list(self._interval.rows)
            for wish, agreed in self._agreement.agreed(sums).items():
                self._agreed[wish] |= agreed

    def _log(self, step: int, stage: Stage) -> None:
        self._monitor.trained(
            step,
            stage,
            means=self._interval.means(),
            learning_rate=float(self._learning_rate(step - 1)),
            images_per_second=self._interval.steps_per_second() * stage.batch_size,
            bad_steps=self._interval.bad_steps,
            all_bad_steps=self._bad_steps.total,
            last_checkpoint=max(self._checkpoints.steps(), default=None),
        )
        self._interval = Interval()
        if not self._bad_steps.in_a_row:
            self._good_rows = []

    def _save(self, state: TrainState) -> None:
        self._settle()
        # In a row of bad steps nothing changes, and how it began is worth more.
        if not self._bad_steps.in_a_row:
            self._save_now(state, self._interval.rows)

    def _save_now(self, state: TrainState, rows: Sequence[Mapping[str, float]]) -> None:
        self._monitor.moves(f"saving step {int(state.step)}")
        # A checkpoint must not be ahead of the lines that lead to it.
        self._monitor.writer.flush()
        own = {"interval": rows, "bad_in_a_row": self._bad_steps.in_a_row}
        self._checkpoints.save(state, {**self._record, "step": int(state.step), **own})
        self._saved_at = time.monotonic()
        self._agreed["save"] = False

    def _end_stage(self, state: TrainState, stage: Stage) -> None:
        """Saves first, so that nothing is lost where the evaluation ends badly."""
        self._settle()
        self._save_now(state, self._interval.rows)
        self._monitor.moves(f"evaluating at the end of stage {stage.index + 1}")
        self._monitor.status.update(state="evaluating", step=stage.end_step)
        results = self._evaluate(state, self._agreement)
        if results is None:
            self._stop_here(state)
        self._checkpoints.scores[stage.end_step] = results["top1"]
        self._monitor.evaluated("eval", stage.end_step, stage, results)

    def _stop_here(self, state: TrainState) -> NoReturn:
        self._settle()
        self._save_now(state, self._interval.rows)
        self._checkpoints.finish()
        step, saved = int(state.step), max(self._checkpoints.steps(), default=0)
        if saved != step:
            raise UsageError(
                f"step {step} could not be saved; the same command resumes at step {saved}"
            )
        raise Stopped(f"stopped after step {step}, which is saved: resume with the same command")

    def _give_up(self, state: TrainState) -> None:
        """Ends the run with the state before a row of bad steps, unless the row ends here."""
        self._settle()
        if not self._bad_steps.too_many:
            return
        first_bad = self._step - self._bad_steps.in_a_row + 1
        self._checkpoints.finish()
        # One within the row, at the end of a stage, is of the same state.
        if max(self._checkpoints.steps(), default=0) < first_bad:
            # All but the step is as it was then.
            step = shard_state(np.int32(first_bad - 1), self._mesh)
            self._bad_steps.in_a_row = 0
            self._save_now(dataclasses.replace(state, step=step), self._good_rows)
            self._checkpoints.finish()
        raise UsageError(
            f"steps {first_bad} to {self._step} had a loss or a gradient that is not finite, and "
            f"changed nothing; the same command goes on from step "
            f"{max(self._checkpoints.steps(), default=0)}, and bad_steps.jsonl in the workdir "
            "names their examples"
        )
