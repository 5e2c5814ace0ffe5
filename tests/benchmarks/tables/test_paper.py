"""The paper's figures as data: they are looked up, and what the recipes take from them agrees."""

import pytest

from configs import common, efficientnetv2
from effnetv2_jax.benchmarks.tables import paper
from effnetv2_jax.benchmarks.tables.paper import OUT_OF_MEMORY, TABLES, Figure
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


def test_a_row_that_is_not_there_is_named():
    with pytest.raises(UsageError, match="unknown row of table 2 '512'"):
        TABLES["2"].figure("512", "top-1")


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_row_has_a_label_of_its_own_and_a_figure_per_column(table):
    assert len({row.label for row in table.rows}) == len(table.rows)
    for row in table.rows:
        assert len(row.values) == len(table.columns)
        assert len(row.spreads) in (0, len(table.columns))
        assert set(row.attested) <= set(table.columns)


def test_every_model_that_is_named_is_in_the_zoo():
    named = {row.model for table in TABLES.values() for row in table.rows} - {""}
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
    assert (config.epochs, config.batch_size) == (paper.EPOCHS, paper.BATCH_SIZE)
    assert config.schedule.num_stages == paper.NUM_STAGES
