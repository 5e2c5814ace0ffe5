"""Which quantities stand in which of the paper's tables and figures, as data."""

import dataclasses
from collections.abc import Mapping, Sequence

from effnetv2_jax.benchmarks.tables import quantities
from effnetv2_jax.benchmarks.tables.paper import TABLES, Row, Table
from effnetv2_jax.benchmarks.tables.quantities import Quantity
from effnetv2_jax.models import list_models

PARAMETER_TOLERANCE = 0.01
FLOP_TOLERANCE = 0.03


@dataclasses.dataclass(frozen=True)
class SectionPlan:
    """A quantity.

    Attributes:
        column: of the paper's table; a title alone where the paper has none.
        quantity: finds ours.
        unit: where the paper has no such column.
        tolerance: of what is exact, as in ``Section``.
        of_device: whether it hangs on the device.
        of_dtype: whether it is asked for in each of the device's dtypes.
        labels: of the rows; None for all.
        table: of the paper, where it is another than the plan's.
    """

    column: str
    quantity: Quantity
    unit: str = ""
    tolerance: float | None = None
    of_device: bool = True
    of_dtype: bool = False
    labels: Sequence[str] | None = None
    table: Table | None = None


@dataclasses.dataclass(frozen=True)
class TablePlan:
    """A table or figure: the paper's rows, and quantities.

    Attributes:
        title: what it shows.
        table: of the paper, with the rows and the published figures.
        sections: in order.
    """

    title: str
    table: Table
    sections: Sequence[SectionPlan]


def _train(*arguments: str) -> str:
    rest = ("--config.data.name=imagenet2012", "--workdir=DIR")
    return " ".join(("python -m effnetv2_jax.train", *arguments, *rest))


def _recipe(row: Row) -> str:
    family, _, variant = (row.model or "").partition("-")
    if family == "efficientnetv2" and variant in ("s", "m", "l", "b0", "b1", "b2", "b3"):
        return _train(f"--config=configs/efficientnetv2.py:{variant}")
    return _train("--config=configs/common.py", "--config.model.name=MODEL")


def _exact(column: str, quantity: Quantity, tolerance: float) -> SectionPlan:
    return SectionPlan(column, quantity, tolerance=tolerance, of_device=False)


PARAMETERS = _exact("parameters", quantities.parameters, PARAMETER_TOLERANCE)
FLOPS = _exact("FLOPs", quantities.flops, FLOP_TOLERANCE)
TOP1 = SectionPlan("top-1", quantities.trains_with(_recipe), of_device=False)
LATENCY = SectionPlan(
    "latency, V100 fp16, batch 16", quantities.latency(batch_size=16), of_dtype=True
)
V1 = tuple(f"EfficientNet-B{i}" for i in range(3, 8))
MAIN = ("EfficientNetV2-S", "EfficientNetV2-M", "EfficientNetV2-L")
HOURS = "training on 32 TPUv3 cores"
SAVING = SectionPlan("progressive training saves, of the hours", quantities.saving, "%")


def _not_here(table: str, reason: str) -> list[SectionPlan]:
    """All columns of a table of accuracies."""
    return [
        SectionPlan(column.name, quantities.unknown(reason), of_device=False)
        for column in TABLES[table].columns
    ]


def _pixels(row: Row) -> int:
    return int(row.label.removesuffix(" px"))


def _zoo() -> Table:
    """Every model, beside what the official repository prints."""
    official = TABLES["official"]
    printed = {row.model: row.values for row in official.rows}
    nothing = (None,) * len(official.columns)
    rows = tuple(Row(name, printed.get(name, nothing), name) for name in list_models())
    return dataclasses.replace(official, name="zoo", rows=rows)


PLANS: Mapping[str, TablePlan] = {
    "zoo": TablePlan("Every model of the zoo", _zoo(), (PARAMETERS, FLOPS)),
    "2": TablePlan(
        TABLES["2"].title,
        TABLES["2"],
        (
            *(
                SectionPlan(
                    f"TPUv3 core, batch {batch}", quantities.training_throughput(batch, _pixels)
                )
                for batch in (32, 128)
            ),
            *(
                SectionPlan(
                    f"V100, batch {batch}",
                    quantities.training_throughput(batch, _pixels, of_a_gpu=True),
                )
                for batch in (12, 24)
            ),
            TOP1,
        ),
    ),
    "3": TablePlan(
        TABLES["3"].title,
        TABLES["3"],
        (
            PARAMETERS,
            FLOPS,
            SectionPlan("TPUv3 core", quantities.training_throughput(32, lambda row: 380)),
            SectionPlan("V100", quantities.training_throughput(32, lambda row: 380, of_a_gpu=True)),
            TOP1,
        ),
    ),
    "5": TablePlan(
        TABLES["5"].title,
        TABLES["5"],
        _not_here(
            "5",
            "needs ImageNet: `"
            + _train(
                "--config=configs/efficientnetv2.py:s",
                "--config.schedule.name=fixed",
                "--config.schedule.image_size='(PX, PX)'",
                "--config.schedule.randaugment_magnitude='(MAGNITUDE, MAGNITUDE)'",
            )
            + "`",
        ),
    ),
    "7": TablePlan(
        TABLES["7"].title,
        TABLES["7"],
        (
            PARAMETERS,
            FLOPS,
            LATENCY,
            SectionPlan(HOURS, quantities.published_hours),
            SectionPlan("at the last size alone", quantities.fixed_hours, "h", labels=MAIN),
            dataclasses.replace(SAVING, labels=MAIN),
            TOP1,
        ),
    ),
    "8": TablePlan(
        TABLES["8"].title,
        TABLES["8"],
        _not_here("8", "needs the data sets and weights trained on ImageNet"),
    ),
    "10": TablePlan(
        TABLES["10"].title,
        TABLES["10"],
        (
            PARAMETERS,
            FLOPS,
            SectionPlan(HOURS, quantities.progressive_hours),
            SAVING,
            LATENCY,
            TOP1,
        ),
    ),
    "11": TablePlan(
        TABLES["11"].title,
        TABLES["11"],
        (
            PARAMETERS,
            FLOPS,
            SectionPlan(
                "throughput, V100 fp16, batch 128",
                quantities.inference_throughput(batch_size=128),
                of_dtype=True,
            ),
            TOP1,
        ),
    ),
    "12": TablePlan(
        TABLES["12"].title,
        TABLES["12"],
        (
            SectionPlan("training, baseline", quantities.fixed_hours),
            SectionPlan("training, progressive", quantities.progressive_hours),
            SectionPlan("training time saved", quantities.saving),
            *(
                SectionPlan(column, quantities.trains_with(_recipe), of_device=False)
                for column in ("top-1, baseline", "top-1, progressive")
            ),
        ),
    ),
    "13": TablePlan(
        TABLES["13"].title,
        TABLES["13"],
        _not_here(
            "13",
            "needs ImageNet: `"
            + _train("--config=configs/efficientnetv2.py:s", "--config.schedule.name=NAME")
            + "` with progressive_resize, random_resize or adaptive_random_resize",
        ),
    ),
    "figure1": TablePlan(
        "Figure 1: accuracy against training time and against parameters",
        TABLES["figure1"],
        (
            SectionPlan(HOURS, quantities.published_hours, labels=(*V1, *MAIN), table=TABLES["7"]),
            PARAMETERS,
            TOP1,
        ),
    ),
    "figure3": TablePlan(
        "Figure 3: training step by model",
        TABLES["7"],
        (
            SectionPlan(
                "step of 4096 images on 32 cores",
                quantities.step_milliseconds,
                "ms",
                labels=(*V1, *MAIN),
            ),
        ),
    ),
    "figure5": TablePlan(
        "Figure 5: parameters, FLOPs and latency", TABLES["7"], (PARAMETERS, FLOPS, LATENCY)
    ),
}
