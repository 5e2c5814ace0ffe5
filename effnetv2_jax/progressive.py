"""Progressive learning: the stages of a run, as pure arithmetic (section 4, Algorithm 1, Table 6).

Image size and regularisation grow together from stage to stage. A ``Stage`` holds everything that
changes over training. ``make_stages`` builds all stages; ``stage_at`` finds the stage of a step.
"""

import bisect
import dataclasses
import random
from collections.abc import Callable, Sequence

from effnetv2_jax.runtime.errors import (
    LARGEST_SIDE,
    Number,
    UsageError,
    check_numbers,
    unknown_name,
)

Range = tuple[float, float]

_ENDS = ("first", "last")
NUMBERS = {
    "num_stages": Number(least=1, most=1000, whole=True),
    "batch_size": Number(least=1, most=1_000_000, whole=True),
    "image_size": Number(
        least=1, most=LARGEST_SIDE, whole=True, names=("smallest", "largest"), rising=True
    ),
    "randaugment_magnitude": Number(most=100, names=_ENDS),
    "mixup_alpha": Number(most=1000, names=_ENDS),
    "cutmix_alpha": Number(most=1000, names=_ENDS),
    "dropout_rate": Number(below=1, names=_ENDS),
    "size_step": Number(least=1, whole=True),
}
"""The arguments of ``make_stages`` that are numbers, and which ones they may be."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage, to which the steps ``first_step`` … ``end_step`` − 1 belong.

    Attributes:
        index: The number of the stage, from 0.
        first_step: The first step of the stage, counted from the start of the run.
        end_step: The first step after the stage.
        image_size: The side of the training images in px.
        randaugment_magnitude: The magnitude of RandAugment; 10 is the usual strength.
        mixup_alpha: The parameter of Mixup's Beta distribution; 0 turns Mixup off.
        cutmix_alpha: The parameter of CutMix's Beta distribution; 0 turns CutMix off.
        dropout_rate: The dropout rate before the classifier.
        batch_size: The number of images of a step, over all devices.
    """

    index: int
    first_step: int
    end_step: int
    image_size: int
    randaugment_magnitude: float
    mixup_alpha: float
    cutmix_alpha: float
    dropout_rate: float
    batch_size: int

    @property
    def num_steps(self) -> int:
        return self.end_step - self.first_step


def _linspace(bounds: Range, fraction: float) -> float:
    """Interpolates between two bounds, exactly at both ends."""
    first, last = bounds
    return last if fraction == 1.0 else first + (last - first) * fraction


def _paper_sizes(bounds: tuple[int, int], num_stages: int, *_: int) -> list[int]:
    # Table 6: S_i = S_0 + (S_e − S_0)·i/(M − 1), so that the first stage has size S_0.
    return [round(_linspace(bounds, f)) for f in _fractions(num_stages)]


def _official_sizes(bounds: tuple[int, int], num_stages: int, *_: int) -> list[int]:
    # The official code uses (i + 1) / M, so that its first stage is already larger than S_0.
    first, last = bounds
    return [int(first + (last - first) * (i + 1) / num_stages) for i in range(num_stages)]


def _fixed_sizes(bounds: tuple[int, int], num_stages: int, *_: int) -> list[int]:
    return [bounds[1]] * num_stages


def _random_sizes(bounds: tuple[int, int], num_stages: int, seed: int, size_step: int):
    # A grid limits the number of sizes, and so of programs to compile.
    first, last = bounds
    grid = sorted({*range(first, last, size_step), last})
    # The text makes this draw independent of all others that use the run's seed.
    generator = random.Random(f"random_resize/{seed}")
    return [generator.choice(grid) for _ in range(num_stages)]


def _fractions(num_stages: int) -> list[float]:
    """Returns i / (M − 1) for every stage; a single stage counts as the last one."""
    return [i / (num_stages - 1) for i in range(num_stages)] if num_stages > 1 else [1.0]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A rule for the sizes and the regularisation of stages.

    Attributes:
        sizes: A function of the size bounds, the number of stages, a seed and the step between
            random sizes that returns the sizes.
        regularization: The quantity that regularisation grows with: ``stage`` for the stage's
            index, ``size`` for its image size. ``constant`` means the last value in all stages.
        dropout_rate: The quantity that dropout grows with, one of the same three names.
    """

    sizes: Callable[..., list[int]]
    regularization: str
    dropout_rate: str


SCHEDULES: dict[str, Schedule] = {
    # Algorithm 1 and Table 6.
    "paper": Schedule(_paper_sizes, "stage", "stage"),
    # The code of google/automl: another first size, and constant dropout.
    "official": Schedule(_official_sizes, "stage", "constant"),
    # One size and one strength throughout.
    "fixed": Schedule(_fixed_sizes, "constant", "constant"),
    # Table 13, "progressive resize" (Howard 2018, fast.ai): sizes change, regularisation does not.
    "progressive_resize": Schedule(_paper_sizes, "constant", "constant"),
    # Table 13, "random resize" (Hoffer et al. 2019), vanilla and with adaptive regularisation.
    "random_resize": Schedule(_random_sizes, "constant", "constant"),
    "adaptive_random_resize": Schedule(_random_sizes, "size", "size"),
}


def make_stages(
    schedule: str,
    *,
    total_steps: int,
    num_stages: int,
    batch_size: int,
    image_size: tuple[int, int],
    randaugment_magnitude: Range = (0.0, 0.0),
    mixup_alpha: Range = (0.0, 0.0),
    cutmix_alpha: Range = (0.0, 0.0),
    dropout_rate: Range = (0.0, 0.0),
    seed: int = 0,
    size_step: int = 32,
) -> tuple[Stage, ...]:
    """Builds the stages of a run; ranges are (first, last), the min and max of Table 6.

    >>> stages = make_stages(
    ...     "paper", total_steps=400, num_stages=4, batch_size=32, image_size=(128, 300)
    ... )
    >>> [(stage.end_step, stage.image_size) for stage in stages]
    [(100, 128), (200, 185), (300, 243), (400, 300)]

    Args:
        schedule: A name in ``SCHEDULES``.
        total_steps: The number of steps of the run. Stages get equal shares, up to rounding.
        num_stages: The number of stages M, at least 1. ``random_resize`` draws as many sizes.
        batch_size: The number of images of a step.
        image_size: The smallest and the largest side of the images in px.
        randaugment_magnitude: The magnitude at the smallest and at the largest size.
        mixup_alpha: The parameter of Mixup at the smallest and at the largest size.
        cutmix_alpha: The parameter of CutMix at the smallest and at the largest size.
        dropout_rate: The dropout rate at the smallest and at the largest size.
        seed: The seed of the sizes in ``random_resize``.
        size_step: The difference in px between the sizes that ``random_resize`` draws from.

    Raises:
        UsageError: For an unknown schedule, no steps, more stages than steps, a size below 1 px or
            a range that is out of bounds.
    """
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    ranges = {
        "randaugment_magnitude": randaugment_magnitude,
        "mixup_alpha": mixup_alpha,
        "cutmix_alpha": cutmix_alpha,
        "dropout_rate": dropout_rate,
    }
    numbers = {
        "num_stages": num_stages,
        "batch_size": batch_size,
        "image_size": image_size,
        "size_step": size_step,
    }
    check_numbers(NUMBERS, numbers | ranges)
    if total_steps < num_stages:
        raise UsageError(
            f"total_steps must be at least num_stages ({num_stages}), got {total_steps}"
        )
    rule = SCHEDULES[schedule]
    sizes = rule.sizes(image_size, num_stages, seed, size_step)
    borders = [total_steps * i // num_stages for i in range(num_stages + 1)]
    span = image_size[1] - image_size[0]
    fractions = {
        "stage": _fractions(num_stages),
        "size": [(size - image_size[0]) / span if span else 1.0 for size in sizes],
        "constant": [1.0] * num_stages,
    }
    return tuple(
        Stage(
            index=i,
            first_step=borders[i],
            end_step=borders[i + 1],
            image_size=sizes[i],
            batch_size=batch_size,
            **{
                name: _linspace(bounds, fractions[getattr(rule, name, rule.regularization)][i])
                for name, bounds in ranges.items()
            },
        )
        for i in range(num_stages)
    )


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """Returns the stage that a step belongs to; the last one for a step at or past the end.

    Raises:
        UsageError: For a negative step.
    """
    if step < 0:
        raise UsageError(f"step must be at least 0, got {step}")
    index = bisect.bisect_right([stage.first_step for stage in stages], step) - 1
    return stages[index]


def examples_before(stages: Sequence[Stage], step: int) -> int:
    """Returns the number of training examples in all steps before ``step``."""
    return sum(
        stage.batch_size * (min(step, stage.end_step) - stage.first_step)
        for stage in stages
        if stage.first_step < step
    )
