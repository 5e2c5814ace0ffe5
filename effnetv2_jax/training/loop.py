"""The training loop: stage after stage, with metrics, evaluations and checkpoints."""

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any, NoReturn, Protocol, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from effnetv2_jax.progressive import Stage, stage_at
from effnetv2_jax.runtime.errors import Stopped, UsageError
from effnetv2_jax.training.evaluation import Evaluation
from effnetv2_jax.training.mesh import shard_state
from effnetv2_jax.training.observing.interval import Interval
from effnetv2_jax.training.observing.monitor import Monitor
from effnetv2_jax.training.observing.starting import Starting
from effnetv2_jax.training.preparation import Preparation, PreparedStage
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.survival.agreement import STEPS_BEHIND, Agreement
from effnetv2_jax.training.survival.bad_steps import BadSteps
from effnetv2_jax.training.survival.checkpoint import Checkpoints


class Stop(Protocol):
    """A request that the run stops, which may come at any time."""

    def __call__(self) -> bool: ...
    def worth_saving(self) -> None: ...


Evaluate = Callable[[Evaluation, TrainState, Agreement], dict[str, float] | None]

T = TypeVar("T")

_POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How often the run logs and saves within a stage; the end of a stage has both.

    Attributes:
        log_steps: The number of steps between two lines of the log.
        save_steps: The number of steps between two checkpoints.
        save_seconds: The number of seconds after which there is a checkpoint in any case.
    """

    log_steps: int
    save_steps: int
    save_seconds: float


class Loop:
    """A run that is under way.

    Args:
        mesh: The mesh that batches are split over.
        preparation: The preparation of the stages, which may have begun.
        evaluations: The evaluations of the run. The first one scores the checkpoints.
        evaluate: A function that makes an evaluation of a state and returns its metrics, or None if
            the processes agreed to stop.
        evaluated: The names of the evaluations that a resumed run has already made at the step of
            its state.
        learning_rate: A function of the step that returns the learning rate, for the log.
        checkpoints: The checkpoints of the run.
        bad_steps: The count of the steps whose numbers are not finite.
        monitor: Receives everything that the run tells about itself.
        cadence: How often the run logs and saves.
        stop: Returns True if this process should stop. It is told when there is something to lose.
        record: What a checkpoint holds beside the loop's own record. For a resumed run, this is the
            record that was restored, which has the unfinished line of the log.
    """

    def __init__(
        self,
        *,
        mesh: Mesh,
        preparation: Preparation,
        evaluations: Sequence[Evaluation],
        evaluate: Evaluate,
        evaluated: Collection[str],
        learning_rate: Callable[[int], Any],
        checkpoints: Checkpoints,
        bad_steps: BadSteps,
        monitor: Monitor,
        cadence: Cadence,
        stop: Stop,
        record: Mapping[str, Any],
    ):
        self._mesh = mesh
        self._preparation = preparation
        self._evaluations = evaluations
        self._evaluate = evaluate
        self._evaluated = evaluated
        self._learning_rate = learning_rate
        self._checkpoints = checkpoints
        self._bad_steps = bad_steps
        self._monitor = monitor
        self._cadence = cadence
        self._stop = stop
        self._record = record
        self._starting = Starting()
        self._interval = Interval(record.get("interval", ()))
        # The rows after the last good step.
        self._good_rows = list(self._interval.rows)
        self._agreement = Agreement(self._wishes, mesh)
        self._agreed = {"stop": False, "save": False}
        self._saved_at = time.monotonic()
        self._step = 0
        self._asked = 0

    def run(self, state: TrainState, stages: Sequence[Stage]) -> TrainState:
        """Trains from the state's step to the end of the last stage; the state is donated.

        Raises:
            Stopped: If somebody asked the run to stop; everything is saved.
            UsageError: If too many steps in a row were left out because their numbers were not
                finite; the state before them is saved.
        """
        self._step = first_step = int(state.step)
        if first_step:
            # The run may have ended between this step and its evaluations.
            due = self._due(first_step, stages)
            self._make_evaluations(
                [evaluation for evaluation in due if evaluation.name not in self._evaluated],
                *(state, stage_at(stages, first_step - 1)),
            )
        remaining = [stage for stage in stages if stage.end_step > first_step]
        if not remaining:
            return state
        self._monitor.progress.start(first_step)
        try:
            for stage, following in zip(remaining, [*remaining[1:], None], strict=True):
                self._monitor.stage_begins(stage, len(stages))
                prepared = self._awaited(self._preparation.prepared(stage), state)
                if following:
                    # The next stage gets ready while this one trains.
                    self._preparation.prepared(following)
                state = self._run_stage(state, stage, stages, prepared)
        finally:
            self._preparation.close()
            self._monitor.progress.stop()
            self._monitor.writer.flush()
        return state

    def _awaited(self, future: Future[T], state: TrainState) -> T:
        """Waits for a result from the background, unless the run is asked to stop before."""
        while not wait([future], _POLL_SECONDS).done:
            if self._stop():
                self._stop_here(state)
        return future.result()

    def _run_stage(
        self, state: TrainState, stage: Stage, stages: Sequence[Stage], prepared: PreparedStage
    ) -> TrainState:
        # The seconds spent on compiling do not count as time spent on steps.
        self._interval = Interval(self._interval.rows)
        begin = int(state.step) + 1
        for step in range(begin, stage.end_step + 1):
            batch = prepared.feed.next(self._agreement.given_up)
            if batch is None and self._agreement.given_up():
                self._stop_here(state)
            assert batch is not None, f"the input of {stage} ended before step {step}"
            batch = self._agreement.attach(batch)
            state, sums = prepared.train_step(state, batch, prepared.scalars)
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
            if step < stage.end_step and (due := self._due(step, stages)):
                self._settle()
                started = time.perf_counter()
                self._make_evaluations(due, state, stage)
                self._interval.pause(time.perf_counter() - started)
        prepared.feed.close()
        with self._starting.work():
            # Saved first, so that nothing is lost if an evaluation fails.
            self._settle()
            self._save_now(state, self._interval.rows)
            self._make_evaluations(self._due(stage.end_step, stages), state, stage)
        return state

    def _due(self, step: int, stages: Sequence[Stage]) -> list[Evaluation]:
        """Returns the evaluations that follow a step."""
        stage_ends = any(stage.end_step == step for stage in stages)
        run_ends = step == stages[-1].end_step
        return [
            evaluation
            for evaluation in self._evaluations
            if evaluation.is_due(step, stage_ends=stage_ends, run_ends=run_ends)
        ]

    def _make_evaluations(
        self, evaluations: Sequence[Evaluation], state: TrainState, stage: Stage
    ) -> None:
        step = int(state.step)
        for evaluation in evaluations:
            self._monitor.moves(f"evaluating {evaluation.name} after step {step}")
            self._monitor.status.update(state="evaluating", step=step)
            results = self._evaluate(evaluation, state, self._agreement)
            if results is None:
                self._stop_here(state)
            scores = evaluation is self._evaluations[0]
            if scores:
                self._checkpoints.scores[step] = results["top1"]
            self._monitor.evaluated(evaluation.name, step, stage, results, scores=scores)

    def _wishes(self) -> dict[str, bool]:
        """Returns the wishes of this process; all processes call this equally often."""
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
            leave: The number of latest steps not to wait for.
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
        # A row of bad steps changes nothing, and the state before it is already worth saving.
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
        # A checkpoint within the row, at the end of a stage, has the same state.
        if max(self._checkpoints.steps(), default=0) < first_bad:
            # Everything but the step is as it was before the row.
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
