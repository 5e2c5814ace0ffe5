"""The time of the paper's whole runs on 32 cores: each stage's seconds a step × its steps."""

import dataclasses
from collections.abc import Mapping

from effnetv2_jax.benchmarks.tables.costs import NOT_RUN, Cost, Costs, Ours, not_run
from effnetv2_jax.benchmarks.tables.paper import TABLES, TRAINING
from effnetv2_jax.models import get_spec
from effnetv2_jax.progressive import Stage, make_stages

IMAGES_A_CORE = TRAINING.batch_size // TRAINING.cores

_FIRST_SIZE = 128
"""The first image size of every progressive run (Table 6), in px."""

PROGRESSIVE = ("efficientnetv2-s", "efficientnetv2-m", "efficientnetv2-l", "efficientnetv2-xl")
"""The models that Table 7 has trained progressively."""

# The number of parts in which a core's 128 images fit into 15.5 GiB, by model and image size, if
# they do not fit at once. It was found by compiling. What does not fit in these is halved again.
PARTS: Mapping[str, Mapping[int, int]] = {
    "efficientnet-b5": {456: 2},
    "efficientnet-b6": {528: 4},
    "efficientnet-b7": {442: 4, 600: 8},
    "efficientnetv2-m": {296: 2, 380: 4},
    "efficientnetv2-l": {212: 2, 296: 4, 380: 8},
}


@dataclasses.dataclass(frozen=True)
class RunTime:
    """The time of a run.

    Attributes:
        stages: The stages of the run.
        costs: The cost of a step of each stage, for all of a core's images. If one is not known,
            the costs of that stage and those after it.
    """

    stages: tuple[Stage, ...]
    costs: tuple[Cost, ...]

    @property
    def hours(self) -> float | None:
        """The hours. None if a stage's step was not run, or does not fit even image by image."""
        seconds = [cost.seconds for cost in self.costs]
        if len(seconds) < len(self.stages) or None in seconds:
            return None
        steps = (stage.num_steps for stage in self.stages)
        return sum(n * s for n, s in zip(steps, seconds, strict=True) if s) / 3600

    def as_ours(self) -> Ours:
        """Returns the hours, with the stages in a note."""
        last, first = self.costs[-1], self.costs[0]
        if self.hours is None:
            size = self.stages[-len(self.costs)].image_size
            return not_run(first.note if first.how == NOT_RUN else f"does not fit at {size} px")
        stages = ", ".join(
            f"{stage.image_size} px {1e3 * (cost.seconds or 0):.4g}"
            for stage, cost in zip(self.stages, self.costs, strict=True)
        )
        steps = sum(stage.num_steps for stage in self.stages)
        note = f"{steps:,} steps of {IMAGES_A_CORE} images a core; ms a step: {stages}"
        return Ours(self.hours, last.how, last.detail, (note, *self.notes))

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes on the costs, such as the age of an estimate, each once."""
        return tuple(dict.fromkeys(cost.note for cost in self.costs if cost.note))


def progressive_run(costs: Costs, model: str) -> RunTime:
    """Returns the run in four stages, from 128 px to the model's training size in Table 6."""
    return _run(costs, model, first_size=_FIRST_SIZE, num_stages=TRAINING.num_stages)


def fixed_run(costs: Costs, model: str) -> RunTime:
    """Returns the run that has only the last size."""
    return _run(costs, model, first_size=last_size(model), num_stages=1)


def last_size(model: str) -> int:
    """Returns the last image size of training in px: Table 6's, or else that of evaluation."""
    return int(_in_table_6(model, "image size, last") or get_spec(model).eval_size)


def _in_table_6(model: str, column: str) -> float:
    """Returns a figure of Table 6, or 0 if it does not have the model."""
    figures = {row.model: TABLES["6"].figure(row.label, column) for row in TABLES["6"].rows}
    found = figures.get(model)
    return float(found.value) if found else 0.0


def _run(costs: Costs, model: str, *, first_size: int, num_stages: int) -> RunTime:
    stages = make_stages(
        "paper" if num_stages > 1 else "fixed",
        total_steps=TRAINING.total_steps,
        num_stages=num_stages,
        batch_size=TRAINING.batch_size,
        image_size=(first_size, last_size(model)),
    )
    found: list[Cost] = []
    # The most expensive stage is the first. If it is not known, the others need not be found.
    for stage in reversed(stages):
        found.insert(0, step_cost(costs, model, stage.image_size))
        if found[0].seconds is None:
            break
    return RunTime(stages, tuple(found))


def step_cost(costs: Costs, model: str, image_size: int) -> Cost:
    """Returns the cost of a step of 128 images a core, in as many parts as it needs to fit."""
    parts = PARTS.get(model, {}).get(image_size, 1)
    while True:
        cost = costs.train_step(
            model,
            image_size=image_size,
            batch_size=IMAGES_A_CORE,
            parts=parts,
            # Mixup is compiled into every stage if the last one uses it.
            mixing=_in_table_6(model, "Mixup, last") > 0,
        )
        if cost.fits is not False or parts == IMAGES_A_CORE:
            break
        parts *= 2
    if cost.seconds is None:
        return cost
    # If fewer images were timed at once, the rest takes as long again.
    times = IMAGES_A_CORE / cost.batch_size
    return dataclasses.replace(
        cost,
        seconds=cost.seconds * times,
        low=None if cost.low is None else cost.low * times,
        high=None if cost.high is None else cost.high * times,
    )
