"""The quantities in the tables' columns: functions that find our figure for a row."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from effnetv2_jax.benchmarks.tables import paper
from effnetv2_jax.benchmarks.tables.costs import EXACT, LOCAL, NOT_RUN, Cost, Costs, Ours, not_run
from effnetv2_jax.benchmarks.tables.paper import OUT_OF_MEMORY, TABLES, Row
from effnetv2_jax.models import get_spec, model_info
from effnetv2_jax.progressive import Stage, make_stages

Quantity = Callable[..., Ours]
"""A function of ``(costs, row)``, for a row whose model is in the zoo. It returns a figure in the
column's unit. Quantities of inference also take a ``dtype``."""

IMAGES_PER_CORE = paper.BATCH_SIZE // paper.CORES

# The number of parts in which a core's 128 images fit into 15.5 GiB, by model and image size, if
# they do not fit at once. It was found by compiling. What does not fit in these is halved again.
PARTS: Mapping[str, Mapping[int, int]] = {
    "efficientnet-b5": {456: 2},
    "efficientnet-b6": {528: 4},
    "efficientnet-b7": {442: 4, 600: 8},
    "efficientnetv2-m": {296: 2, 380: 4},
    "efficientnetv2-l": {212: 2, 296: 4, 380: 8},
}

_model_info = functools.cache(model_info)


def parameters(costs: Costs, row: Row) -> Ours:
    """Returns the trainable parameters, in millions."""
    return Ours(_model_info(row.model).parameters / 1e6, EXACT)


def flops(costs: Costs, row: Row) -> Ours:
    """Returns the multiply-adds at the evaluation size, in billions."""
    info = _model_info(row.model)
    return Ours(info.multiply_adds / 1e9, EXACT, f"{info.image_size} px")


def training_throughput(
    batch_size: int, image_size: Callable[[Row], int], *, of_a_gpu: bool = False
) -> Quantity:
    """Makes the quantity of a device's images/s in training.

    Args:
        batch_size: The number of images per device.
        image_size: Returns the image size of a row, in px.
        of_a_gpu: The published figure is a GPU's, so ours is only measured.
    """

    def quantity(costs: Costs, row: Row) -> Ours:
        if of_a_gpu and costs.name != LOCAL:
            return not_run("published on a V100: it is measured only (--device=local)")
        cost = costs.train_step(row.model, image_size=image_size(row), batch_size=batch_size)
        return _images_per_second(cost)

    return quantity


def latency(batch_size: int) -> Quantity:
    """Makes the quantity of the milliseconds of an inference."""
    return lambda costs, row, dtype: _milliseconds(_inference(costs, row, batch_size, dtype))


def inference_throughput(batch_size: int) -> Quantity:
    """Makes the quantity of a device's images/s in inference."""
    return lambda costs, row, dtype: _images_per_second(_inference(costs, row, batch_size, dtype))


def step_milliseconds(costs: Costs, row: Row) -> Ours:
    """Returns the time of a step of 4096 images on 32 devices, at the last training size."""
    return _milliseconds(step_cost(costs, row.model, last_size(row.model)))


def progressive_hours(costs: Costs, row: Row) -> Ours:
    """Returns the hours on 32 cores of the run in four stages, from 128 px to the last size."""
    return _hours(costs, row.model, first_size=128, num_stages=paper.NUM_STAGES)


def fixed_hours(costs: Costs, row: Row) -> Ours:
    """Returns the hours on 32 cores of the run that has only the last size."""
    return _hours(costs, row.model, first_size=last_size(row.model), num_stages=1)


def published_hours(costs: Costs, row: Row) -> Ours:
    """Returns the hours of the paper's run: V2 is trained progressively, V1 at its size."""
    if "21k" in row.label:
        return not_run("the paper does not say of which runs the hours are")
    hours = progressive_hours if row.model.startswith("efficientnetv2-") else fixed_hours
    return hours(costs, row)


def saving(costs: Costs, row: Row) -> Ours:
    """Returns the share of the fixed run's time that the progressive run saves, in %."""
    runs = [fixed_hours(costs, row), progressive_hours(costs, row)]
    for run in runs:
        if run.how == NOT_RUN:
            return run
    fixed, progressive = (float(run.value or 0) for run in runs)
    note = f"{progressive:.3g} h instead of {fixed:.3g} h at {last_size(row.model)} px"
    # The first note of a run names its steps.
    notes = tuple(dict.fromkeys((note, *runs[0].notes[1:], *runs[1].notes[1:])))
    return Ours(100 * (1 - progressive / fixed), runs[1].how, notes=notes)


def last_size(model: str) -> int:
    """Returns the last image size of training in px: Table 6's, or else that of evaluation."""
    return int(_in_table_6(model, "image size, last") or get_spec(model).eval_size)


def step_cost(costs: Costs, model: str, image_size: int) -> Cost:
    """Returns the cost of a step of 128 images per core, in as many parts as it needs to fit."""
    parts = PARTS.get(model, {}).get(image_size, 1)
    while True:
        cost = costs.train_step(
            model,
            image_size=image_size,
            batch_size=IMAGES_PER_CORE,
            parts=parts,
            # Mixup is compiled into every stage if the last one uses it.
            mixing=_in_table_6(model, "Mixup, last") > 0,
        )
        if cost.seconds is not None:
            break
        if cost.how == NOT_RUN or parts == IMAGES_PER_CORE:
            return cost
        parts *= 2
    # If fewer images were timed at once, the rest takes as long again.
    times = IMAGES_PER_CORE / cost.batch_size
    return dataclasses.replace(
        cost,
        seconds=cost.seconds * times,
        low=None if cost.low is None else cost.low * times,
        high=None if cost.high is None else cost.high * times,
    )


def _in_table_6(model: str, column: str) -> float:
    """Returns a figure of Table 6, or 0 if it does not have the model."""
    figures = {row.model: TABLES["6"].figure(row.label, column) for row in TABLES["6"].rows}
    found = figures.get(model)
    return float(found.value) if found else 0.0


def _hours(costs: Costs, model: str, *, first_size: int, num_stages: int) -> Ours:
    """Returns the hours of a run. Its notes are on its steps, then on their costs."""
    stages = make_stages(
        "paper" if num_stages > 1 else "fixed",
        total_steps=paper.TOTAL_STEPS,
        num_stages=num_stages,
        batch_size=paper.BATCH_SIZE,
        image_size=(first_size, last_size(model)),
    )
    found: list[tuple[Stage, float, Cost]] = []
    # The most expensive stage is the first. If it is not known, the others need not be found.
    for stage in reversed(stages):
        cost = step_cost(costs, model, stage.image_size)
        if cost.seconds is None:
            refused = f"does not fit at {stage.image_size} px"
            return not_run(cost.note if cost.how == NOT_RUN else refused)
        found.insert(0, (stage, cost.seconds, cost))
    hours = sum(stage.num_steps * seconds for stage, seconds, _ in found) / 3600
    each = ", ".join(f"{stage.image_size} px {1e3 * s:.4g}" for stage, s, _ in found)
    steps = f"{paper.TOTAL_STEPS:,} steps of {IMAGES_PER_CORE} images a core; ms a step: {each}"
    notes = dict.fromkeys(cost.note for *_, cost in found if cost.note)
    *_, last = found[-1]
    return Ours(hours, last.how, last.detail, (steps, *notes))


def _images_per_second(cost: Cost) -> Ours:
    return _per_run(cost, lambda seconds: cost.batch_size / seconds)


def _milliseconds(cost: Cost) -> Ours:
    return _per_run(cost, lambda seconds: 1e3 * seconds)


def _per_run(cost: Cost, figure: Callable[[float], float]) -> Ours:
    if cost.how == NOT_RUN:
        return not_run(cost.note)
    notes = (cost.note,) if cost.note else ()
    if cost.seconds is None:
        return Ours(OUT_OF_MEMORY, cost.how, cost.detail, notes)
    bounds = sorted(figure(bound) for bound in (cost.low, cost.high) if bound is not None)
    return Ours(figure(cost.seconds), cost.how, cost.detail, notes, *bounds)


def _inference(costs: Costs, row: Row, batch_size: int, dtype: str) -> Cost:
    size = _model_info(row.model).eval_size
    return costs.inference(row.model, image_size=size, batch_size=batch_size, dtype=dtype)
