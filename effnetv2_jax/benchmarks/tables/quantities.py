"""The quantities in the tables' columns: functions that find our figure for a row."""

import functools
from collections.abc import Callable

from effnetv2_jax.benchmarks.tables import training_runs
from effnetv2_jax.benchmarks.tables.costs import EXACT, LOCAL, NOT_RUN, Cost, Costs, Ours, not_run
from effnetv2_jax.benchmarks.tables.paper import OUT_OF_MEMORY, Row
from effnetv2_jax.models import ModelInfo, model_info

Quantity = Callable[..., Ours]
"""A function of ``(costs, row)``, for a row whose model is in the zoo. It returns a figure in the
column's unit. Quantities of inference also take a ``dtype``."""

_model_info = functools.cache(model_info)


def _info(row: Row) -> ModelInfo:
    return _model_info(_name(row))


def parameters(costs: Costs, row: Row) -> Ours:
    """Returns the trainable parameters, in millions."""
    return Ours(_info(row).parameters / 1e6, EXACT)


def flops(costs: Costs, row: Row) -> Ours:
    """Returns the multiply-adds at the evaluation size, in billions."""
    info = _info(row)
    return Ours(info.multiply_adds / 1e9, EXACT, f"{info.image_size} px")


def trains_with(command: Callable[[Row], str]) -> Quantity:
    """Makes the quantity of an accuracy, which needs the data set and days, and names a command."""
    return lambda costs, row: not_run(f"needs ImageNet: `{command(row)}`")


def training_throughput(
    batch_size: int, image_size: Callable[[Row], int], *, of_a_gpu: bool = False
) -> Quantity:
    """Makes the quantity of a device's images/s in training.

    Args:
        batch_size: The number of images a device.
        image_size: Returns the image size of a row, in px.
        of_a_gpu: The published figure is a GPU's, so ours is only measured.
    """

    def quantity(costs: Costs, row: Row) -> Ours:
        if of_a_gpu and costs.name != LOCAL:
            return not_run("published on a V100: it is measured only (--device=local)")
        size = image_size(row)
        cost = costs.train_step(_name(row), image_size=size, batch_size=batch_size)
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
    cost = training_runs.step_cost(costs, _name(row), training_runs.last_size(_name(row)))
    return _milliseconds(cost)


def progressive_hours(costs: Costs, row: Row) -> Ours:
    """Returns the hours of the run of Table 6."""
    return training_runs.progressive_run(costs, _name(row)).as_ours()


def fixed_hours(costs: Costs, row: Row) -> Ours:
    """Returns the hours of the run that has only the last size."""
    return training_runs.fixed_run(costs, _name(row)).as_ours()


def published_hours(costs: Costs, row: Row) -> Ours:
    """Returns the hours of the paper's run: V2 is trained progressively, V1 at its size."""
    if "21k" in row.label:
        return not_run("the paper does not say of which runs the hours are")
    hours = progressive_hours if row.model in training_runs.PROGRESSIVE else fixed_hours
    return hours(costs, row)


def saving(costs: Costs, row: Row) -> Ours:
    """Returns the share of the fixed run's time that the progressive run saves, in %."""
    model = _name(row)
    runs = [training_runs.fixed_run(costs, model), training_runs.progressive_run(costs, model)]
    for run in runs:
        if run.hours is None:
            return run.as_ours()
    fixed, progressive = (run.hours or 0.0 for run in runs)
    size = training_runs.last_size(model)
    note = f"{progressive:.3g} h instead of {fixed:.3g} h at {size} px"
    notes = tuple(dict.fromkeys((note, *runs[0].notes, *runs[1].notes)))
    return Ours(100 * (1 - progressive / fixed), runs[1].costs[-1].how, notes=notes)


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
    size = _info(row).eval_size
    return costs.inference(_name(row), image_size=size, batch_size=batch_size, dtype=dtype)


def _name(row: Row) -> str:
    assert row.model is not None
    return row.model
