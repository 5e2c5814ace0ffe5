"""A workdir belongs to one run: lost files come back, and other runs are refused."""

import copy
import json

import jax
import numpy as np
import pytest

from configs import digits
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.workdir import claim, read_config, settle_dtype
from effnetv2_jax.training import mesh as placement
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.survival.checkpoint import Checkpoints


@pytest.fixture
def record():
    """The record of a run on ten classes."""
    return {
        "config": json.loads(json.dumps(digits.get_config().to_dict())),
        "class_names": [str(i) for i in range(10)],
        "versions": {"jax": "1"},
    }


@pytest.fixture
def workdir(tmp_path, record):
    """The workdir of that run, with a checkpoint."""
    claim(str(tmp_path), record)
    checkpoints = Checkpoints(tmp_path)
    mesh = placement.make_mesh(jax.devices()[:1])
    state = TrainState(np.int32(5), {"w": np.ones(3, np.float32)}, {}, (), {}, {})
    checkpoints.save(placement.shard_state(state, mesh), record)
    checkpoints.close()
    return tmp_path


def refused(workdir, record):
    with pytest.raises(UsageError) as error:
        claim(str(workdir), record)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.startswith(f"workdir {str(workdir)!r} holds a run ")
    return sentence


def changed(record, **fields):
    other = copy.deepcopy(record)
    for name, value in fields.items():
        *path, last = name.split("__")
        place = other["config"]
        for part in path:
            place = place[part]
        place[last] = value
    return other


def test_dtype_auto_is_the_devices_at_first_and_then_the_runs(tmp_path, record):
    config = digits.get_config()
    first = settle_dtype(config, str(tmp_path / "run"))
    assert (config.model.dtype, first.model.dtype) == ("auto", "float32")
    # A run that began on a TPU goes on here in its dtype; another one is refused.
    claim(str(tmp_path), changed(record, model__dtype="bfloat16"))
    assert settle_dtype(config, str(tmp_path)).model.dtype == "bfloat16"
    config.model.dtype = "float32"
    config = settle_dtype(config, str(tmp_path))
    with pytest.raises(UsageError, match=r"model.dtype \(there 'bfloat16', now 'float32'\)"):
        claim(str(tmp_path), record | {"config": config.to_dict()})


LOST = {
    "config.json": ["config.json"],
    "class_names.txt": ["class_names.txt"],
    "both": ["config.json", "class_names.txt"],
}


@pytest.mark.parametrize("names", LOST)
def test_what_is_lost_is_known_from_the_checkpoint(workdir, record, names):
    before = {name: (workdir / name).read_bytes() for name in LOST["both"]}
    for name in LOST[names]:
        (workdir / name).unlink()
    # It is still no other run's.
    assert "seed (there 0, now 1)" in refused(workdir, changed(record, seed=1))
    others = record | {"class_names": record["class_names"][:9]}
    assert "other classes" in refused(workdir, others)
    assert read_config(workdir).to_dict() == record["config"]
    # What is refused leaves nothing.
    assert not any((workdir / name).exists() for name in LOST[names])
    claim(str(workdir), record)
    assert {name: (workdir / name).read_bytes() for name in LOST["both"]} == before


def test_a_broken_config_is_known_from_the_checkpoint(workdir, record):
    (workdir / "config.json").write_text('{"seed": 0, "mod')
    assert "seed (there 0, now 1)" in refused(workdir, changed(record, seed=1))
    claim(str(workdir), record)
    assert read_config(workdir).to_dict() == record["config"]


def test_another_run_is_refused_with_all_fields_that_differ(workdir, record):
    other = changed(record, model__name="efficientnetv2-s", data__name="synthetic", epochs=8.0)
    sentence = refused(workdir, other)
    assert (
        "holds a run with another config: "
        "data.name (there 'digits', now 'synthetic'), epochs (there 16.0, now 8.0), "
        "model.name (there 'efficientnetv2-b0', now 'efficientnetv2-s'); "
        "use the same config to resume it, or another workdir"
    ) in sentence


CLASSES = {
    "fewer": (["0", "1", "2"], " (10 there, 3 now)"),
    "more": ([str(i) for i in range(11)], " (10 there, 11 now)"),
    "others": ([str(9 - i) for i in range(10)], ""),
}


@pytest.mark.parametrize("name", CLASSES)
def test_other_classes_under_the_same_name_are_refused(workdir, record, name):
    """A folder of images may have got another class since."""
    classes, counts = CLASSES[name]
    sentence = refused(workdir, record | {"class_names": classes})
    assert f"on other classes than those of digits now{counts}, class_names.txt has" in sentence


def test_an_old_workdir_goes_on_under_the_field_names_of_today(workdir, record):
    old = copy.deepcopy(record["config"])
    old["optimizer"]["decay"] = old["optimizer"].pop("learning_rate_schedule")
    del old["optimizer"]["options"], old["evals"]
    (workdir / "config.json").write_text(json.dumps(old))
    claim(str(workdir), record)
    assert read_config(workdir).to_dict() == record["config"]
    sentence = refused(workdir, changed(record, optimizer__learning_rate_schedule="cosine"))
    assert "optimizer.learning_rate_schedule (there 'cooldown', now 'cosine')" in sentence
    other = changed(record, optimizer__options={"b2": 0.95}, evals={"eval": {}, "raw": {}})
    sentence = refused(workdir, other)
    assert "optimizer.options.b2 (there None, now 0.95)" in sentence
    assert "evals.raw (there None, now {})" in sentence


def test_what_does_not_change_the_numbers_may_differ(workdir, record):
    other = changed(
        record,
        log_every_steps=7,
        max_bad_steps=99,
        stall_seconds=1.0,
        fsdp=2,
        model__remat="blocks",
        checkpoint__every_steps=3,
        checkpoint__keep_best=0,
    )
    claim(str(workdir), other | {"versions": {"jax": "2"}})
    # It is what the run began with.
    assert read_config(workdir).log_every_steps == record["config"]["log_every_steps"]
