"""The quantities in each of the paper's tables and figures, as data; and why some counts differ."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

from effnetv2_jax.benchmarks.tables import quantities
from effnetv2_jax.benchmarks.tables.costs import Costs, Ours, not_run
from effnetv2_jax.benchmarks.tables.paper import TABLES, Row, Table
from effnetv2_jax.benchmarks.tables.quantities import Quantity
from effnetv2_jax.models import list_models


@dataclasses.dataclass(frozen=True)
class SectionPlan:
    """A quantity.

    Attributes:
        column: The column of the paper's table, or a title if it has no such column.
        quantity: Finds our figure.
        unit: The unit, if the paper has no such column.
        tolerance: The tolerance of an exact quantity, as in ``Section``.
        of_device: The quantity depends on the device.
        of_dtype: It is asked for in each of the device's dtypes.
        labels: The labels of the rows. None means all.
        table: The paper's table, with the rows and the published figures.
    """

    column: str
    quantity: Quantity
    unit: str = ""
    tolerance: float | None = None
    of_device: bool = True
    of_dtype: bool = False
    labels: Collection[str] | None = None
    table: Table = TABLES["7"]

    def rows(self, models: Collection[str] | None) -> list[Row]:
        """Returns the rows of some models; None means all."""
        rows = [row for row in self.table.rows if models is None or row.model in models]
        return [row for row in rows if self.labels is None or row.label in self.labels]


@dataclasses.dataclass(frozen=True)
class TablePlan:
    """A table or figure.

    Attributes:
        name: Its name, such as ``2`` for Table 2.
        title: The subject.
        sections: The quantities, in order.
    """

    name: str
    title: str
    sections: Sequence[SectionPlan]


def _needs_imagenet(*arguments: str) -> str:
    rest = ("--config.data.name=imagenet2012", "--workdir=DIR")
    command = " ".join(("python -m effnetv2_jax.train", *arguments, *rest))
    return f"needs ImageNet: `{command}`"


def _not_trained(costs: Costs, row: Row) -> Ours:
    family, _, variant = row.model.partition("-")
    if family == "efficientnetv2" and variant in ("s", "m", "l", "b0", "b1", "b2", "b3"):
        return not_run(_needs_imagenet(f"--config=configs/efficientnetv2.py:{variant}"))
    return not_run(_needs_imagenet("--config=configs/common.py", "--config.model.name=MODEL"))


def _exact(column: str, quantity: Quantity, tolerance: float | None = None) -> SectionPlan:
    return SectionPlan(column, quantity, tolerance=tolerance, of_device=False)


PARAMETERS = _exact("parameters", quantities.parameters, 0.01)
FLOPS = _exact("FLOPs", quantities.flops, 0.03)
TOP1 = _exact("top-1", _not_trained)
LATENCY = SectionPlan("latency, V100 fp16, batch 16", quantities.latency(16), of_dtype=True)
THROUGHPUT = SectionPlan(
    "throughput, V100 fp16, batch 128", quantities.inference_throughput(128), of_dtype=True
)
V1 = tuple(f"EfficientNet-B{i}" for i in range(3, 8))
MAIN = ("EfficientNetV2-S", "EfficientNetV2-M", "EfficientNetV2-L")
STEP = "step of 4096 images on 32 cores"
HOURS = "training on 32 TPUv3 cores"
SAVING = SectionPlan("progressive training saves, of the hours", quantities.saving, "%")


def _training(column: str, batch_size: int, image_size: Callable[[Row], int]) -> SectionPlan:
    of_a_gpu = column.startswith("V100")
    quantity = quantities.training_throughput(batch_size, image_size, of_a_gpu=of_a_gpu)
    return SectionPlan(column, quantity)


def _not_here(table: str, reason: str) -> list[SectionPlan]:
    """Plans all columns of a table of accuracies."""
    return [_exact(column, lambda costs, row: not_run(reason)) for column in TABLES[table].columns]


def _pixels(row: Row) -> int:
    return int(row.label.removesuffix(" px"))


def _zoo() -> Table:
    """Returns every model, beside what the official repository prints."""
    official = TABLES["official"]
    printed = {row.model: row.values for row in official.rows}
    rows = tuple(Row(name, printed.get(name, (None, None)), name) for name in list_models())
    return dataclasses.replace(official, name="zoo", title="Every model of the zoo", rows=rows)


def _plan(table: str | Table, *sections: SectionPlan, name: str = "", title: str = "") -> TablePlan:
    published = TABLES[table] if isinstance(table, str) else table
    sections = tuple(dataclasses.replace(section, table=published) for section in sections)
    return TablePlan(name or published.name, title or published.title, sections)


_PLANS = (
    _plan(_zoo(), PARAMETERS, FLOPS),
    _plan(
        "2",
        _training("TPUv3 core, batch 32", 32, _pixels),
        _training("TPUv3 core, batch 128", 128, _pixels),
        _training("V100, batch 12", 12, _pixels),
        _training("V100, batch 24", 24, _pixels),
        TOP1,
    ),
    _plan(
        "3",
        PARAMETERS,
        FLOPS,
        _training("TPUv3 core", 32, lambda row: 380),
        _training("V100", 32, lambda row: 380),
        TOP1,
    ),
    _plan(
        "5",
        *_not_here(
            "5",
            _needs_imagenet(
                "--config=configs/efficientnetv2.py:s",
                "--config.schedule.name=fixed",
                "--config.schedule.image_size='(PX, PX)'",
                "--config.schedule.randaugment_magnitude='(MAGNITUDE, MAGNITUDE)'",
            ),
        ),
    ),
    _plan(
        "7",
        PARAMETERS,
        FLOPS,
        LATENCY,
        SectionPlan(HOURS, quantities.published_hours),
        SectionPlan("at the last size only", quantities.fixed_hours, "h", labels=MAIN),
        dataclasses.replace(SAVING, labels=MAIN),
        TOP1,
    ),
    _plan("8", *_not_here("8", "needs the data sets and weights trained on ImageNet")),
    _plan(
        "10",
        PARAMETERS,
        FLOPS,
        SectionPlan(HOURS, quantities.progressive_hours),
        SAVING,
        LATENCY,
        TOP1,
    ),
    _plan("11", PARAMETERS, FLOPS, THROUGHPUT, TOP1),
    _plan(
        "12",
        SectionPlan("training, baseline", quantities.fixed_hours),
        SectionPlan("training, progressive", quantities.progressive_hours),
        SectionPlan("training time saved", quantities.saving),
        _exact("top-1, baseline", _not_trained),
        _exact("top-1, progressive", _not_trained),
    ),
    _plan(
        "13",
        *_not_here(
            "13",
            _needs_imagenet("--config=configs/efficientnetv2.py:s", "--config.schedule.name=NAME")
            + " with progressive_resize, random_resize or adaptive_random_resize",
        ),
    ),
    TablePlan(
        "figure1",
        "Figure 1: accuracy against training time and against parameters",
        (
            SectionPlan(HOURS, quantities.published_hours, labels=(*V1, *MAIN)),
            *_plan("figure1", PARAMETERS, TOP1).sections,
        ),
    ),
    _plan(
        "7",
        SectionPlan(STEP, quantities.step_milliseconds, "ms", labels=(*V1, *MAIN)),
        name="figure3",
        title="Figure 3: training step by model",
    ),
    _plan(
        "7",
        PARAMETERS,
        FLOPS,
        LATENCY,
        name="figure5",
        title="Figure 5: parameters, FLOPs and latency",
    ),
)

PLANS: Mapping[str, TablePlan] = {plan.name: plan for plan in _PLANS}

_EARLY_S = (
    "an early S, whose last stages have 272 and 1792 filters, as the paper's text once had it: by "
    "our count 23.9 M and 8.6 B; the released S is ours, and printed as 21.5 M and 8.4 B"
)
_FUSED = (
    "the paper does not define its fused blocks; with the replaced block's kernel and without SE, "
    "as here, parameters are 20.9, 43.5 and 132.1 M, with 3 × 3 kernels and SE 20.0, 29.7 and "
    "68.6 M with 7.3, 12.9 and 18.5 B, and no other way we tried gives all of its figures"
)
_FUSED_MODEL = "efficientnet-b4-fused-1-{}"

FOOTNOTES: Mapping[tuple[str, str, float | str], str] = {
    ("efficientnetv2-s", "parameters", 22): "the official repository prints 21.5",
    ("efficientnetv2-s", "parameters", 24): _EARLY_S,
    ("efficientnetv2-s", "FLOPs", 8.8): _EARLY_S,
    ("efficientnetv2-m", "parameters", 55): "Table 7 has 54 for the same network",
    ("efficientnetv2-l", "parameters", 120): (
        "the official repository prints 119.5, and its code builds 118,515,272"
    ),
    ("efficientnetv2-l", "FLOPs", 53): "the official repository prints 56.3",
    ("efficientnetv2-b0", "parameters", 7.4): (
        "the official repository prints 7.1, and its code builds 7,139,704"
    ),
    ("efficientnet-b3", "FLOPs", 1.9): "EfficientNet's own paper prints 1.8",
    ("efficientnet-b4", "FLOPs", 4.2): (
        "EfficientNet's own paper prints 4.2 as well, Table 3 of this one 4.5 for the same network"
    ),
    ("efficientnet-b5", "FLOPs", 9.9): "Table 7 has 10 for the same network",
    (_FUSED_MODEL.format(3), "parameters", 20.0): _FUSED,
    **{
        (_FUSED_MODEL.format(last), "FLOPs", published): _FUSED
        for last, published in ((3, 7.5), (5, 21.3), (7, 34.4))
    },
}
"""Why a published count is not ours, by model, column and the published figure."""
