"""Old workdirs keep working when fields get other names."""

from effnetv2_jax.runtime.recipe import flatten, upgraded


def test_an_old_config_has_the_names_and_fields_of_today():
    old = {"seed": 0, "optimizer": {"name": "adamw", "decay": "cosine"}}
    assert flatten(upgraded(old)) == {
        "seed": 0,
        "optimizer.name": "adamw",
        "optimizer.learning_rate_schedule": "cosine",
        "optimizer.options": {},
        "evals.eval": {},
    }
    assert old["optimizer"] == {"name": "adamw", "decay": "cosine"}


def test_a_config_of_today_stays():
    new = upgraded({"optimizer": {"learning_rate_schedule": "cosine", "options": {"b2": 0.9}}})
    new["evals"] = {}
    assert upgraded(new) == new
