"""Unknown fields are refused, and old workdirs keep working when fields get other names."""

import pytest

from configs import digits
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.recipe import checked, flatten, refuse_unknown, upgraded


def test_an_old_config_has_the_names_and_fields_of_today():
    old = {"seed": 0, "optimizer": {"name": "adamw", "decay": "cosine"}}
    assert flatten(upgraded(old)) == {
        "seed": 0,
        "optimizer.name": "adamw",
        "optimizer.learning_rate_schedule": "cosine",
        "optimizer.options": {},
        "data.exif_orientation": False,
        "data.sampler": "shuffled",
        "class_weights": None,
        "init_architecture": None,
        "evals.eval": {},
    }
    assert old["optimizer"] == {"name": "adamw", "decay": "cosine"}


def test_a_config_of_today_stays():
    new = upgraded({"optimizer": {"learning_rate_schedule": "cosine", "options": {"b2": 0.9}}})
    new["evals"] = {}
    assert upgraded(new) == new


def test_a_field_that_is_not_there_is_refused_with_the_near_ones():
    allowed = ("optimizer.learning_rate", "optimizer.name", "seed")
    refuse_unknown(("seed", "optimizer.options.b2", "evals.raw.weights"), allowed)
    with pytest.raises(UsageError, match=r"'optimizer.learning_rat'.*optimizer.learning_rate"):
        refuse_unknown(("optimizer.learning_rat",), allowed)
    with pytest.raises(UsageError, match=r"'optimizer.decay' is now called"):
        refuse_unknown(("optimizer.decay",), allowed)


def test_every_field_of_every_recipe_is_in_common():
    assert checked(digits.get_config()).seed == 0
    config = digits.get_config()
    config.class_weights = {"a.b c": 2}
    # A class's name may be no name of a field.
    assert checked(config).class_weights == [["a.b c", 2]]
    with config.unlocked():
        config.sead = 1
    with pytest.raises(UsageError, match="did you mean seed"):
        checked(config)


def test_a_shortened_name_is_understood_in_any_section():
    allowed = ("seed", "optimizer.learning_rate", "optimizer.name", "model.name")
    with pytest.raises(
        UsageError, match=r"did you mean optimizer.learning_rate\? allowed are seed"
    ):
        refuse_unknown(("lr",), allowed)
    with pytest.raises(UsageError, match=r"did you mean model.name or optimizer.name\?"):
        refuse_unknown(("model.nme",), allowed)
    with pytest.raises(UsageError, match="section of the config 'modl': did you mean model"):
        refuse_unknown(("modl.name",), allowed)
