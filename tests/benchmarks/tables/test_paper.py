"""The paper's figures as data: they are looked up, and what the recipes take from them agrees."""

import pytest

from configs import common, efficientnetv2
from effnetv2_jax.benchmarks.tables.paper import (
    OUT_OF_MEMORY,
    TABLES,
    TRAINING,
    Figure,
    Row,
    Table,
)
from effnetv2_jax.models import list_models
from effnetv2_jax.runtime.errors import UsageError


def test_figures_are_found_by_row_and_column():
    assert TABLES["2"].figure("512 px", "TPUv3 core, batch 128") == Figure(
        OUT_OF_MEMORY, "images/s", 1
    )
    assert TABLES["5"].figure("magnitude 5", "300 px") == Figure(82.5, "%", 1, 0.05)
    assert TABLES["7"].figure("EfficientNetV2-S", "top-1") == Figure(83.9, "%", 2)
    assert TABLES["7"].figure("EfficientNetV2-S", "parameters") == Figure(22, "M", 1)
    assert TABLES["7"].figure("RegNetY-8GF", "training on 32 TPUv3 cores") is None


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ("512", "top-1", "unknown row of table 2 '512'"),
        ("512 px", "top1", "unknown column of table 2 'top1': did you mean top-1?"),
    ],
)
def test_what_is_not_there_is_named(row, column, message):
    with pytest.raises(UsageError, match=message):
        TABLES["2"].figure(row, column)


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="row 'x' of table 1 has another length"):
        Table("1", "", TABLES["2"].columns, (Row("x", (1.0,)),))


def test_every_model_that_is_named_is_in_the_zoo():
    named = {row.model for table in TABLES.values() for row in table.rows} - {None}
    assert named <= set(list_models())


def test_the_recipes_are_table_6():
    table = TABLES["6"]
    for variant in ("S", "M", "L"):
        recipe = efficientnetv2.PAPER[variant.lower()]
        ranges = (
            recipe.image_size,
            recipe.randaugment_magnitude,
            recipe.mixup_alpha,
            recipe.dropout_rate,
        )
        assert table.row(variant).values == tuple(x for pair in ranges for x in pair)


def test_the_recipes_train_as_section_5_1_says():
    config = common.get_config()
    assert (config.epochs, config.batch_size) == (TRAINING.epochs, TRAINING.batch_size)
    assert config.schedule.num_stages == TRAINING.num_stages
