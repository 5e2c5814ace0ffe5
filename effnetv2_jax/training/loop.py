"""The training loop: stage after stage, with metrics, evaluations and checkpoints."""

import collections
import dataclasses
import functools
import operator
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import wait
from typing import Any, NoReturn

import jax
import numpy as np

from effnetv2_jax.progressive import Stage, stage_at
from effnetv2_jax.runtime.errors import Stopped, UsageError
from effnetv2_jax.runtime.signals import StopRequest
from effnetv2_jax.training.evaluation import Evaluation
from effnetv2_jax.training.mesh import shard_state
from effnetv2_jax.training.observing.monitor import Monitor
from effnetv2_jax.training.observing.starting import Starting
from effnetv2_jax.training.preparation import Preparation, PreparedStage
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.survival.agreement import STEPS_BEHIND, Agreement
from effnetv2_jax.training.survival.bad_steps import BadSteps
from effnetv2_jax.training.survival.checkpoint import Checkpoints

_POLL_SECONDS = 0.1


# Makes an evaluation of a state, and calls a function after every batch. It returns the metrics, or
# None if the processes agreed to stop.
Evaluate = Callable[
    [Evaluation, TrainState, Agreement, Callable[[], None]], dict[str, float] | None
]


class _Interval:
    """The steps between two lines of the log: their sums, fetched a few steps late."""

    def __init__(self, rows: Sequence[Mapping[str, float]] = ()):
        # A resumed run has rows of the steps before.
        self.rows: list[Mapping[str, float]] = list(rows)
        """The sums of every step that has been fetched, as floats that JSON holds exactly."""
        self.started = time.perf_counter()
        """The time from which the speed is measured; later by the pauses that do not count."""
        self._under_way: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self.steps = 0

    def add(self, step: int, sums: dict[str, jax.Array]) -> None:
        """Takes the sums that a step returned, which need not have been computed yet."""
        for x in sums.values():
            x.copy_to_host_async()
        self._under_way.append((step, sums))
        self.steps += 1

    def fetch(self, leave: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Waits for all steps but the ``leave`` newest; adds each to ``rows`` and yields it."""
        while len(self._under_way) > leave:
            step, sums = self._under_way.popleft()
            sums = jax.device_get(sums)
            self.rows.append({name: float(x) for name, x in sums.items() if x.ndim == 0})
            yield step, sums

    def means(self) -> dict[str, float]:
        """Returns ``loss`` and ``accuracy`` over all finite steps; nothing if there is none."""
        good = [row for row in self.rows if row["finite"]]
        if not good:
            return {}

        def total(name: str) -> np.float32:
            # In order and in float32: an array's own sum would add in pairs, and round otherwise.
            return functools.reduce(operator.add, [np.float32(row[name]) for row in good])

        count = total("count")
        return {"loss": float(total("loss") / count), "accuracy": float(total("correct") / count)}


@dataclasses.dataclass(kw_only=True)
class Loop:
    """A run that is under way.

    Attributes:
        stages: All stages of the run.
        preparation: The preparation of the stages, which may have begun.
        evaluations: The evaluations of the run. The first one scores the checkpoints.
        evaluate: Makes one of them.
        evaluated: The names of the evaluations that a resumed run has already made at the step of
            its state.
        learning_rate: A function of the step that returns the learning rate, for the log.
        checkpoints: The checkpoints of the run.
        bad_steps: The count of the steps whose numbers are not finite.
        monitor: Receives everything that the run tells about itself.
        log_steps: The number of steps between two lines of the log. The end of a stage has a line
            and a checkpoint as well.
        save_steps: The number of steps between two checkpoints.
        save_seconds: The number of seconds after which there is a checkpoint in any case.
        stop: Returns True if this process should stop. It is told when there is something to lose.
        record: What a checkpoint holds beside the loop's own record. For a resumed run, this is the
            record that was restored, which has the unfinished line of the log.
    """

    stages: Sequence[Stage]
    preparation: Preparation
    evaluations: Sequence[Evaluation]
    evaluate: Evaluate
    evaluated: Collection[str]
    learning_rate: Callable[[int], Any]
    checkpoints: Checkpoints
    bad_steps: BadSteps
    monitor: Monitor
    log_steps: int
    save_steps: int
    save_seconds: float
    stop: StopRequest
    record: Mapping[str, Any]

    def __post_init__(self):
        self._starting = Starting()
        self._interval = _Interval(self.record.get("interval", ()))
        # The rows after the last good step.
        self._good_rows = list(self._interval.rows)
        self._agreement = Agreement(self._wishes, self.preparation.mesh)
        self._agreed = {"stop": False, "save": False}
        self._saved_at = time.monotonic()
        self._step = 0
        self._asked = 0

    def run(self, state: TrainState) -> TrainState:
        """Trains from the state's step to the end of the last stage, and closes what it was given.

        The state is donated.

        Raises:
            Stopped: If somebody asked the run to stop; everything is saved.
            UsageError: If too many steps in a row were left out because their numbers were not
                finite; the state before them is saved. Also if the last step could not be saved.
        """
        self._step = first_step = int(state.step)
        remaining = [stage for stage in self.stages if stage.end_step > first_step]
        try:
            if first_step:
                # The run may have ended between this step and its evaluations.
                stage = stage_at(self.stages, first_step - 1)
                self._evaluate_due(state, stage, made=self.evaluated)
            if remaining:
                self.monitor.progress.start(first_step)
            for stage, following in zip(remaining, [*remaining[1:], None], strict=False):
                state = self._run_stage(state, stage, following)
        finally:
            self.preparation.close()
            self.monitor.close()
            self.checkpoints.close()
            saved = self.checkpoints.last_saved()
            self.monitor.status.update(last_checkpoint=saved)
        if saved != self._step:
            raise UsageError(
                f"the last step could not be saved; the same command goes on from step {saved}"
            )
        return state

    def _prepared(self, stage: Stage, state: TrainState) -> PreparedStage:
        """Waits until a stage is prepared, unless the run is asked to stop before."""
        self.monitor.stage_begins(stage, len(self.stages))
        future = self.preparation.prepared(stage)
        while not wait([future], _POLL_SECONDS).done:
            if self.stop():
                self._stop_here(state)
        return future.result()

    def _run_stage(self, state: TrainState, stage: Stage, following: Stage | None) -> TrainState:
        prepared = self._prepared(stage, state)
        # The seconds spent on compiling do not count as time spent on steps.
        self._interval = _Interval(self._interval.rows)
        begin = int(state.step) + 1
        for step in range(begin, stage.end_step + 1):
            batch = prepared.feed.next(self._agreement.given_up)
            if batch is None and self._agreement.given_up():
                self._stop_here(state)
            assert batch is not None, f"the input of {stage} ended before step {step}"
            batch = self._agreement.attach(batch)
            state, sums = prepared.train_step(state, batch, prepared.scalars)
            if step == begin:
                self.monitor.first_step(self._starting.first_step(stage.end_step - begin + 1))
                if following:
                    # The next stage gets ready while this one trains.
                    self.preparation.prepared(following)
            self.stop.worth_saving()
            self._step = step
            self._interval.add(step, sums)
            self.monitor.watch.beat(f"training step {step + 1}")
            ends = step == stage.end_step
            log = ends or step % self.log_steps == 0
            self._settle(leave=0 if log else STEPS_BEHIND)
            if ends:
                self._starting.last_step()
            if self.bad_steps.too_many:
                self._give_up(state)
            if log:
                self._log(step, stage)
            if ends:
                break
            if self._agreed["stop"]:
                self._stop_here(state)
            if step % self.save_steps == 0 or self._agreed["save"]:
                self._settle()
                # A row of bad steps changes nothing, and the state before it is worth more.
                if not self.bad_steps.in_a_row:
                    self._save(state, self._interval.rows)
            started = time.perf_counter()
            if self._evaluate_due(state, stage):
                self._interval.started += time.perf_counter() - started
        prepared.feed.close()
        with self._starting.work():
            # Saved first, so that nothing is lost if an evaluation fails.
            self._save(state, self._interval.rows)
            self._evaluate_due(state, stage)
        return state

    def _evaluate_due(self, state: TrainState, stage: Stage, made: Collection[str] = ()) -> bool:
        """Makes the evaluations that follow this step; returns True if there were any."""
        step = self._step
        due = [
            evaluation
            for evaluation in self.evaluations
            if evaluation.is_due(step, self.stages) and evaluation.name not in made
        ]
        if due:
            self._settle()
        for evaluation in due:
            moves = functools.partial(
                self.monitor.watch.beat, f"evaluating {evaluation.name} after step {step}"
            )
            moves()
            self.monitor.status.update(state="evaluating", step=step)
            results = self.evaluate(evaluation, state, self._agreement, moves)
            if results is None:
                self._stop_here(state)
            scores = evaluation is self.evaluations[0]
            if scores:
                self.checkpoints.scores[step] = results["top1"]
            self.monitor.evaluated(evaluation.name, step, stage, results, scores=scores)
        return bool(due)

    def _wishes(self) -> dict[str, bool]:
        """Returns the wishes of this process; all processes call this equally often."""
        self._asked += 1
        late = time.monotonic() - self._saved_at >= self.save_seconds
        return {
            "stop": self.stop() or self.checkpoints.reached_preemption(self._asked),
            # One clock is enough.
            "save": late and jax.process_index() == 0,
        }

    def _settle(self, leave: int = 0) -> None:
        """Waits for all steps but the ``leave`` newest, and looks at what they returned."""
        for step, sums in self._interval.fetch(leave):
            self.bad_steps.see(step, sums)
            if not self.bad_steps.in_a_row:
                self._good_rows = list(self._interval.rows)
            for wish, agreed in self._agreement.agreed(sums).items():
                self._agreed[wish] |= agreed

    def _log(self, step: int, stage: Stage) -> None:
        seconds = time.perf_counter() - self._interval.started
        metrics = self._interval.means() | {
            "learning_rate": float(self.learning_rate(step - 1)),
            "images_per_second": self._interval.steps / seconds * stage.batch_size,
            "bad_steps": sum(not row["finite"] for row in self._interval.rows),
        }
        newest = self.checkpoints.last_saved() or None
        total = self.bad_steps.total
        self.monitor.trained(step, stage, metrics, bad_steps=total, last_checkpoint=newest)
        self._interval = _Interval()
        if not self.bad_steps.in_a_row:
            self._good_rows = []

    def _save(self, state: TrainState, rows: Sequence[Mapping[str, float]]) -> None:
        step = int(state.step)
        self.monitor.watch.beat(f"saving step {step}")
        # A checkpoint must not be ahead of the lines that lead to it.
        self.monitor.writer.flush()
        own = {"step": step, "interval": rows, "bad_in_a_row": self.bad_steps.in_a_row}
        self.checkpoints.save(state, {**self.record, **own})
        self._saved_at = time.monotonic()
        self._agreed["save"] = False

    def _stop_here(self, state: TrainState) -> NoReturn:
        self._settle()
        self._save(state, self._interval.rows)
        self.checkpoints.finish()
        step, saved = int(state.step), self.checkpoints.last_saved()
        if saved != step:
            raise UsageError(
                f"step {step} could not be saved; the same command resumes at step {saved}"
            )
        raise Stopped(f"stopped after step {step}, which is saved: resume with the same command")

    def _give_up(self, state: TrainState) -> None:
        """Ends the run with the state before a row of bad steps, unless the row ends here."""
        self._settle()
        if not self.bad_steps.too_many:
            return
        first_bad = self._step - self.bad_steps.in_a_row + 1
        self.checkpoints.finish()
        # A checkpoint within the row, at the end of a stage, has the same state. Before the first
        # step there is nothing to save, and the workdir is still free for another config.
        if 1 < first_bad > self.checkpoints.last_saved():
            # Everything but the step is as it was before the row.
            step = shard_state(np.int32(first_bad - 1), self.preparation.mesh)
            self.bad_steps.in_a_row = 0
            self._save(dataclasses.replace(state, step=step), self._good_rows)
            self.checkpoints.finish()
        raise UsageError(
            f"steps {first_bad} to {self._step} had a loss or a gradient that is not finite, and "
            f"changed nothing; the same command goes on from step "
            f"{self.checkpoints.last_saved()}, and bad_steps.jsonl in the workdir "
            "names their examples"
        )
