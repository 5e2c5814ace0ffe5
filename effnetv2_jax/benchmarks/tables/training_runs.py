"""How long a whole run of the paper takes on 32 cores: seconds a step of each stage × its steps."""

import dataclasses
from collections.abc import Mapping

from effnetv2_jax.benchmarks.tables.comparison import NOT_RUN, Ours, not_run
from effnetv2_jax.benchmarks.tables.costs import Cost, Costs
from effnetv2_jax.benchmarks.tables.paper import TABLES, TRAINING
from effnetv2_jax.models import get_spec
from effnetv2_jax.progressive import Stage, make_stages

IMAGES_A_CORE = TRAINING.batch_size // TRAINING.cores

_FIRST_SIZE = 128
"""px, of every progressive run (Table 6)."""

PROGRESSIVE = ("efficientnetv2-s", "efficientnetv2-m", "efficientnetv2-l", "efficientnetv2-xl")
"""What Table 7 has trained progressively."""

# Where a core's 128 images do not fit into 15.5 GiB at once, in how many parts they do: found by
# compiling. Fewer images of other devices may need more; what is refused is halved once more.
PARTS: Mapping[str, Mapping[int, int]] = {
    "efficientnet-b5": {456: 2},
    "efficientnet-b6": {528: 4},
    "efficientnet-b7": {442: 4, 600: 8},
    "efficientnetv2-m": {296: 2, 380: 4},
    "efficientnetv2-l": {212: 2, 296: 4, 380: 8},
}


@dataclasses.dataclass(frozen=True)
class RunTime:
    """Of a run.

    Attributes:
        stages: of it.
        costs: of a step of each, of all of a core's images; of the last stages alone where one
            cannot be told.
        cores: that share the batch.
    """

    stages: tuple[Stage, ...]
    costs: tuple[Cost, ...]
    cores: int = TRAINING.cores

    @property
    def hours(self) -> float | None:
        """None where a stage's step was not run, or does not fit even image by image."""
        seconds = [cost.seconds for cost in self.costs]
        if len(seconds) < len(self.stages) or None in seconds:
            return None
        steps = (stage.num_steps for stage in self.stages)
        return sum(n * s for n, s in zip(steps, seconds, strict=True) if s) / 3600

    def as_ours(self) -> Ours:
        """In hours; the note has the stages."""
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
        return Ours(self.hours, last.how, last.detail, (note,))


def progressive_run(costs: Costs, model: str) -> RunTime:
    """The run in four stages, from 128 px to the model's training size of Table 6."""
    return _run(costs, model, first_size=_FIRST_SIZE, num_stages=TRAINING.num_stages)


def fixed_run(costs: Costs, model: str) -> RunTime:
    """The run at the last size alone."""
    return _run(costs, model, first_size=last_size(model), num_stages=1)


def last_size(model: str) -> int:
    """Side in px at which the paper's training ends: Table 6's, else that of evaluation."""
    sizes = {
        row.model: TABLES["6"].figure(row.label, "image size, last") for row in TABLES["6"].rows
    }
    found = sizes.get(model)
    return int(found.value) if found else get_spec(model).eval_size


def uses_mixing(model: str) -> bool:
    """Whether Table 6 has Mixup for the model; it is compiled into every stage then."""
    alphas = {row.model: TABLES["6"].figure(row.label, "Mixup, last") for row in TABLES["6"].rows}
    found = alphas.get(model)
    return bool(found and found.value)


def _run(costs: Costs, model: str, *, first_size: int, num_stages: int) -> RunTime:
    stages = make_stages(
        "paper" if num_stages > 1 else "fixed",
        total_steps=TRAINING.total_steps,
        num_stages=num_stages,
        batch_size=TRAINING.batch_size,
        image_size=(first_size, last_size(model)),
    )
    found: list[Cost] = []
    # The dearest first: where it cannot be told, nothing else has to be found.
    for stage in reversed(stages):
        found.insert(0, step_cost(costs, model, stage.image_size))
        if found[0].seconds is None:
            break
    return RunTime(stages, tuple(found))


def step_cost(costs: Costs, model: str, image_size: int) -> Cost:
    """Of a step of 128 images a core, in as many parts as its memory asks for."""
    parts = PARTS.get(model, {}).get(image_size, 1)
    while True:
        cost = costs.train_step(
            model,
            image_size=image_size,
            batch_size=IMAGES_A_CORE,
            parts=parts,
            mixing=uses_mixing(model),
        )
        if cost.fits is not False or parts == IMAGES_A_CORE:
            break
        parts *= 2
    if cost.seconds is None:
        return cost
    # Fewer images were timed at once where they do not fit: the rest takes as long again.
    times = IMAGES_A_CORE / cost.batch_size
    return dataclasses.replace(
        cost,
        seconds=cost.seconds * times,
        low=None if cost.low is None else cost.low * times,
        high=None if cost.high is None else cost.high * times,
    )
