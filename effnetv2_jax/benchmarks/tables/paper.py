"""The figures that the paper printed (Tan & Le 2021, arXiv 2104.00298), as data.

Figures are rounded as in the paper. ``attested`` is the number of sources in which one was found.
Those with 1 rest only on our memory of the paper, so they are printed beside ours, and no test
compares our code with them.
"""

import dataclasses
from collections.abc import Mapping

from effnetv2_jax.runtime.errors import unknown_name

OUT_OF_MEMORY = "out of memory"

# The training on ImageNet (section 5.1), found in two sources.
EPOCHS = 350
BATCH_SIZE = 4096
CORES = 32
IMAGES = 1_281_167
NUM_STAGES = 4
"""M of Algorithm 1."""
TOTAL_STEPS = EPOCHS * IMAGES // BATCH_SIZE


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        value: The figure as printed, or ``OUT_OF_MEMORY``.
        unit: The unit.
        attested: The number of sources in which it was found, 1 or 2.
        spread: The standard deviation over runs, if the paper has one.
    """

    value: float | str
    unit: str
    attested: int
    spread: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: Its name in the paper.
        values: One figure per column, ``OUT_OF_MEMORY``, or None if the paper has none.
        model: Its name in ``list_models()``. Empty if it is not in the zoo.
        attested: The number of sources by the name of a column, if it is not the table's.
        spreads: One standard deviation per column, or none at all.
    """

    label: str
    values: tuple[float | str | None, ...]
    model: str = ""
    attested: Mapping[str, int] = dataclasses.field(default_factory=dict)
    spreads: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """A table, or the points of a figure.

    Attributes:
        name: ``2`` for Table 2, ``figure1`` for Figure 1.
        title: The subject.
        columns: The columns of figures, with their units.
        rows: The rows in the paper's order.
        attested: The number of sources of its figures, unless a row has another number.
    """

    name: str
    title: str
    columns: Mapping[str, str]
    rows: tuple[Row, ...]
    attested: int = 1

    def row(self, label: str) -> Row:
        """Returns the row of a label; raises UsageError for an unknown one."""
        rows = {row.label: row for row in self.rows}
        if label not in rows:
            raise unknown_name(f"row of table {self.name}", label, rows)
        return rows[label]

    def figure(self, label: str, column: str) -> Figure | None:
        """Returns the figure of a row in a column, or None if the paper has none.

        Raises:
            UsageError: For an unknown row.
        """
        row = self.row(label)
        value = dict(zip(self.columns, row.values, strict=True)).get(column)
        if value is None:
            return None
        spread = dict(zip(self.columns, row.spreads, strict=False)).get(column)
        attested = row.attested.get(column, self.attested)
        return Figure(value, self.columns[column], attested, spread)


# The paper counts one multiply-add as one FLOP.
_COUNTS = {"top-1": "%", "parameters": "M", "FLOPs": "B"}
_HOURS = {"training on 32 TPUv3 cores": "h"}
_LATENCY = {"latency, V100 fp16, batch 16": "ms"}
_V2 = {"top-1": 2}

_TABLES = (
    Table(
        "2",
        "EfficientNet-B6: training throughput by image size and batch",
        {
            "top-1": "%", "TPUv3 core, batch 32": "images/s", "TPUv3 core, batch 128": "images/s",
            "V100, batch 12": "images/s", "V100, batch 24": "images/s",
        },
        (
            Row("512 px", (84.3, 42, OUT_OF_MEMORY, 29, OUT_OF_MEMORY), "efficientnet-b6"),
            Row("380 px", (84.6, 76, 93, 37, 52), "efficientnet-b6"),
        ),
    ),
    Table(
        "3",
        "EfficientNet-B4: MBConv replaced by Fused-MBConv",
        {
            "parameters": "M", "FLOPs": "B", "top-1": "%", "TPUv3 core": "images/s",
            "V100": "images/s",
        },
        (
            Row("no fused", (19.3, 4.5, 82.8, 262, 155), "efficientnet-b4"),
            Row("fused stage 1–3", (20.0, 7.5, 83.1, 362, 216), "efficientnet-b4-fused-1-3"),
            Row("fused stage 1–5", (43.4, 21.3, 83.1, 327, 223), "efficientnet-b4-fused-1-5"),
            Row("fused stage 1–7", (132.0, 34.4, 81.7, 254, 206), "efficientnet-b4-fused-1-7"),
        ),
        attested=2,
    ),
    Table(
        "5",
        "Top-1 by RandAugment magnitude and image size",
        {"128 px": "%", "192 px": "%", "300 px": "%"},
        (
            Row("magnitude 5", (78.3, 81.2, 82.5), spreads=(0.16, 0.06, 0.05)),
            Row("magnitude 10", (78.0, 81.6, 82.7), spreads=(0.08, 0.08, 0.08)),
            Row("magnitude 15", (77.7, 81.5, 83.2), spreads=(0.15, 0.05, 0.09)),
        ),
    ),
    Table(
        "6",
        "Progressive learning: first and last image size and regularisation",
        {
            "image size, first": "px", "image size, last": "px", "RandAugment, first": "magnitude",
            "RandAugment, last": "magnitude", "Mixup, first": "alpha", "Mixup, last": "alpha",
            "dropout, first": "rate", "dropout, last": "rate",
        },
        (
            Row("S", (128, 300, 5, 15, 0, 0, 0.1, 0.3), "efficientnetv2-s"),
            Row("M", (128, 380, 5, 20, 0, 0.2, 0.1, 0.4), "efficientnetv2-m"),
            Row("L", (128, 380, 5, 25, 0, 0.5, 0.1, 0.5), "efficientnetv2-l"),
        ),
        attested=2,
    ),
    Table(
        "7",
        "Main results",
        {**_COUNTS, **_LATENCY, **_HOURS},
        (
            Row("EfficientNet-B3", (81.5, 12, 1.9, 19, 10), "efficientnet-b3"),
            Row("EfficientNet-B4", (82.9, 19, 4.2, 30, 21), "efficientnet-b4"),
            Row("EfficientNet-B5", (83.7, 30, 10, 60, 43), "efficientnet-b5"),
            Row("EfficientNet-B6", (84.3, 43, 19, 97, 75), "efficientnet-b6"),
            Row("EfficientNet-B7", (84.7, 66, 38, 170, 139), "efficientnet-b7"),
            Row("RegNetY-8GF", (81.7, 39, 8, 21, None)),
            Row("RegNetY-16GF", (82.9, 84, 16, 32, None)),
            Row("ResNeSt-101", (83.0, 48, 13, 31, None)),
            Row("ResNeSt-200", (83.9, 70, 36, 76, None)),
            Row("ResNeSt-269", (84.5, 111, 78, 160, None)),
            Row("TResNet-L", (83.8, 56, None, 45, None)),
            Row("TResNet-XL", (84.3, 78, None, 66, None)),
            Row("EfficientNet-X", (84.7, 73, 91, None, None)),
            Row("NFNet-F0", (83.6, 72, 12, 30, 8.9)),
            Row("NFNet-F1", (84.7, 133, 36, 70, 20)),
            Row("NFNet-F2", (85.1, 194, 63, 124, 36)),
            Row("NFNet-F3", (85.7, 255, 115, 203, 65)),
            Row("NFNet-F4", (85.9, 316, 215, 309, 126)),
            Row("LambdaResNet-420-hybrid", (84.9, 125, None, None, 67)),
            Row("BotNet-T7-hybrid", (84.7, 75, 46, None, 95)),
            Row("BiT-M-R152x2 (21k)", (85.2, 236, 135, 500, None)),
            Row("ViT-B/32", (73.4, 88, 13, 13, None), "vit-b-32"),
            Row("ViT-B/16", (74.9, 87, 56, 68, None), "vit-b-16"),
            Row("DeiT-B (ViT+reg)", (81.8, 86, 18, 19, None), "deit-b"),
            Row("DeiT-B-384 (ViT+reg)", (83.1, 86, 56, 68, None), "deit-b-384"),
            Row("T2T-ViT-19", (81.4, 39, 8.4, None, None)),
            Row("T2T-ViT-24", (82.2, 64, 13, None, None)),
            Row("ViT-B/16 (21k)", (84.6, 87, 56, 68, None), "vit-b-16"),
            Row("ViT-L/16 (21k)", (85.3, 304, 192, 195, 172), "vit-l-16"),
            Row("EfficientNetV2-S", (83.9, 22, 8.8, 24, 7.1), "efficientnetv2-s", _V2),
            Row("EfficientNetV2-M", (85.1, 54, 24, 57, 13), "efficientnetv2-m", _V2),
            Row("EfficientNetV2-L", (85.7, 120, 53, 98, 24), "efficientnetv2-l", _V2),
            Row("EfficientNetV2-S (21k)", (84.9, 22, 8.8, 24, 9.0), "efficientnetv2-s", _V2),
            Row("EfficientNetV2-M (21k)", (86.2, 54, 24, 57, 15), "efficientnetv2-m", _V2),
            Row("EfficientNetV2-L (21k)", (86.8, 120, 53, 98, 26), "efficientnetv2-l", _V2),
            Row("EfficientNetV2-XL (21k)", (87.3, 208, 94, None, 45), "efficientnetv2-xl", _V2),
        ),
    ),
    Table(
        "8",
        "Transfer learning: top-1, mean and standard deviation of five runs",
        {"CIFAR-10": "%", "CIFAR-100": "%", "Flowers": "%", "Cars": "%"},
        (
            Row("EfficientNetV2-S", (98.7, 91.5, 97.9, 93.8), "efficientnetv2-s",
                spreads=(0.04, 0.11, 0.13, 0.11)),
            Row("EfficientNetV2-M", (99.0, 92.2, 98.5, 94.6), "efficientnetv2-m",
                spreads=(0.08, 0.08, 0.08, 0.10)),
            Row("EfficientNetV2-L", (99.1, 92.3, 98.8, 95.1), "efficientnetv2-l",
                spreads=(0.03, 0.13, 0.05, 0.10)),
        ),
        attested=2,
    ),
    Table(
        "10",
        "The same training, progressive, for both",
        {**_COUNTS, **_HOURS, **_LATENCY},
        (
            Row("EfficientNet-B7", (85.0, 66, 38, 54, 170), "efficientnet-b7"),
            Row("EfficientNetV2-M", (85.1, 55, 24, 13, 57), "efficientnetv2-m"),
        ),
    ),
    Table(
        "11",
        "Scaling down, without progressive learning",
        {**_COUNTS, "throughput, V100 fp16, batch 128": "images/s"},
        (
            Row("EfficientNet-B1", (79.0, 7.8, 0.7, 2675), "efficientnet-b1"),
            Row("EfficientNetV2-B0", (78.7, 7.4, 0.7, 5739), "efficientnetv2-b0"),
            Row("EfficientNet-B2", (79.8, 9.1, 1.0, 2003), "efficientnet-b2"),
            Row("EfficientNetV2-B1", (79.8, 8.1, 1.2, 3983), "efficientnetv2-b1"),
            Row("EfficientNet-B4", (82.9, 19, 4.2, 628), "efficientnet-b4"),
            Row("EfficientNetV2-B3", (82.1, 14, 3.0, 1693), "efficientnetv2-b3"),
            Row("EfficientNet-B5", (83.7, 30, 9.9, 291), "efficientnet-b5"),
            Row("EfficientNetV2-S", (83.6, 24, 8.8, 901), "efficientnetv2-s"),
        ),
    ),
    Table(
        "12",
        "Progressive learning for other networks",
        {
            "top-1, baseline": "%", "top-1, progressive": "%", "training, baseline": "h",
            "training, progressive": "h", "training time saved": "%",
        },
        (
            Row("ResNet50 (224)", (78.1, 78.4, 4.9, 3.5, 29)),
            Row("ResNet50 (380)", (80.0, 80.3, 14.3, 5.8, 59)),
            Row("ResNet152 (380)", (82.4, 82.9, 15.5, 7.2, 54)),
            Row("EfficientNet-B4", (82.9, 83.1, 20.8, 9.4, 55), "efficientnet-b4"),
            Row("EfficientNet-B5", (83.7, 84.0, 42.9, 15.2, 65), "efficientnet-b5"),
        ),
    ),
    Table(
        "13",
        "Adaptive regularisation: top-1 of other ways to change the image size",
        {"vanilla": "%", "adaptive": "%"},
        (
            Row("Progressive resize (Howard 2018)", (84.3, 85.1), spreads=(0.14, 0.07)),
            Row("Random resize (Hoffer et al. 2019)", (83.5, 84.2), spreads=(0.11, 0.10)),
        ),
    ),
    Table(
        "figure1",
        "Figure 1(b): accuracy against parameters",
        {"top-1": "%", "parameters": "M"},
        (
            Row("EfficientNet", (84.3, 43), "efficientnet-b6"),
            Row("ResNet-RS", (84.0, 164)),
            Row("DeiT/ViT", (83.1, 86), "deit-b-384"),
            Row("EfficientNetV2", (83.9, 24), "efficientnetv2-s"),
        ),
        attested=2,
    ),
    Table(
        "official",
        "Parameters and multiply-adds as the official repository prints them",
        {"parameters": "M", "FLOPs": "B"},
        (
            Row("EfficientNetV2-S", (21.5, 8.4), "efficientnetv2-s"),
            Row("EfficientNetV2-M", (54.1, 24.7), "efficientnetv2-m"),
            Row("EfficientNetV2-L", (119.5, 56.3), "efficientnetv2-l"),
            Row("EfficientNetV2-B0", (7.1, 0.72), "efficientnetv2-b0"),
            Row("EfficientNetV2-B1", (8.1, 1.2), "efficientnetv2-b1"),
            Row("EfficientNetV2-B2", (10.1, 1.7), "efficientnetv2-b2"),
            Row("EfficientNetV2-B3", (14.4, 3.0), "efficientnetv2-b3"),
        ),
        attested=2,
    ),
)  # fmt: skip

TABLES: dict[str, Table] = {table.name: table for table in _TABLES}
