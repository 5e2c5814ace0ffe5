"""What a column of a table holds, and how ours is found: a function of where costs come from."""

import functools
from collections.abc import Callable

from effnetv2_jax.benchmarks.tables import training_runs
from effnetv2_jax.benchmarks.tables.comparison import EXACT, NOT_RUN, Ours, not_run
from effnetv2_jax.benchmarks.tables.costs import LOCAL, Cost, Costs
from effnetv2_jax.benchmarks.tables.paper import OUT_OF_MEMORY, Row
from effnetv2_jax.models import ModelInfo, model_info

Quantity = Callable[..., Ours]
"""Of ``(costs, row)``, a row whose model is in the zoo, in the column's unit; those of inference
take a ``dtype`` as well."""

_info = functools.cache(model_info)


def eval_size(model: str) -> int:
    """Side in px at which it is evaluated."""
    return _info(model).eval_size


def parameters(costs: Costs, row: Row) -> Ours:
    """Trainable ones, in millions."""
    return Ours(_of(row).parameters / 1e6, EXACT)


def flops(costs: Costs, row: Row) -> Ours:
    """Multiply-adds at the evaluation size, in billions."""
    info = _of(row)
    return Ours(info.multiply_adds / 1e9, EXACT, f"{info.image_size} px")


def trains_with(command: Callable[[Row], str]) -> Quantity:
    """Accuracies, which need the data set and days: the command that would find them."""
    return lambda costs, row: not_run(f"needs ImageNet: `{command(row)}`")


def unknown(reason: str) -> Quantity:
    """What cannot be run, whatever the model."""
    return lambda costs, row: not_run(reason)


def training_throughput(
    batch_size: int, image_size: Callable[[Row], int], *, of_a_gpu: bool = False
) -> Quantity:
    """Images/s of a device; what was published of a GPU is measured only."""

    def quantity(costs: Costs, row: Row) -> Ours:
        if of_a_gpu and costs.name != LOCAL:
            return not_run("published on a V100: it is measured only (--device=local)")
        size = image_size(row)
        return images_per_second(
            costs.train_step(_name(row), image_size=size, batch_size=batch_size)
        )

    return quantity


def latency(batch_size: int) -> Quantity:
    """Milliseconds of an inference."""

    def quantity(costs: Costs, row: Row, dtype: str) -> Ours:
        return milliseconds(_inference(costs, row, batch_size, dtype))

    return quantity


def inference_throughput(batch_size: int) -> Quantity:
    """Images/s of an inference on one device."""

    def quantity(costs: Costs, row: Row, dtype: str) -> Ours:
        return images_per_second(_inference(costs, row, batch_size, dtype))

    return quantity


def step_milliseconds(costs: Costs, row: Row) -> Ours:
    """Of a training step of 4096 images on 32 devices, at the last training size."""
    cost = training_runs.step_cost(costs, _name(row), training_runs.last_size(_name(row)))
    return milliseconds(cost)


def progressive_hours(costs: Costs, row: Row) -> Ours:
    """Of the run of Table 6."""
    return training_runs.progressive_run(costs, _name(row)).as_ours()


def fixed_hours(costs: Costs, row: Row) -> Ours:
    """Of the run at the last size alone."""
    return training_runs.fixed_run(costs, _name(row)).as_ours()


def published_hours(costs: Costs, row: Row) -> Ours:
    """Of the run as the paper has it: V2 is trained progressively, V1 at its size."""
    if "21k" in row.label:
        return not_run("the paper does not say of which runs the hours are")
    hours = progressive_hours if row.model in training_runs.PROGRESSIVE else fixed_hours
    return hours(costs, row)


def saving(costs: Costs, row: Row) -> Ours:
    """Share of the fixed run's time that the progressive run saves, in %."""
    model = _name(row)
    runs = [training_runs.fixed_run(costs, model), training_runs.progressive_run(costs, model)]
    for run in runs:
        if run.hours is None:
            return run.as_ours()
    fixed, progressive = (run.hours or 0.0 for run in runs)
    return Ours(
        100 * (1 - progressive / fixed),
        runs[1].costs[-1].how,
        notes=(
            f"{progressive:.3g} h instead of {fixed:.3g} h at {training_runs.last_size(model)} px",
        ),
    )


def images_per_second(cost: Cost) -> Ours:
    """Of a device."""
    return _per_run(cost, lambda seconds: cost.batch_size / seconds)


def milliseconds(cost: Cost) -> Ours:
    """Of a run."""
    return _per_run(cost, lambda seconds: 1e3 * seconds)


def _per_run(cost: Cost, figure: Callable[[float], float]) -> Ours:
    if cost.how == NOT_RUN:
        return not_run(cost.note)
    if cost.seconds is None:
        return Ours(OUT_OF_MEMORY, cost.how, cost.detail, _notes(cost))
    bounds = sorted(figure(bound) for bound in (cost.low, cost.high) if bound is not None)
    return Ours(figure(cost.seconds), cost.how, cost.detail, _notes(cost), *bounds)


def _notes(cost: Cost) -> tuple[str, ...]:
    return (cost.note,) if cost.note else ()


def _inference(costs: Costs, row: Row, batch_size: int, dtype: str) -> Cost:
    size = eval_size(_name(row))
    return costs.inference(_name(row), image_size=size, batch_size=batch_size, dtype=dtype)


def _name(row: Row) -> str:
    assert row.model is not None
    return row.model


def _of(row: Row) -> ModelInfo:
    return _info(_name(row))
