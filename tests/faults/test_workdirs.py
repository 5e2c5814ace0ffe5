"""Whose workdir it is: what was lost is known from the checkpoint, another run is refused."""

import copy
import json

import jax
import numpy as np
import pytest

from configs import digits
from effnetv2_jax.runtime import config as programs
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training import mesh as placement
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.survival.checkpoint import Checkpoints


@pytest.fixture
def record():
    """What a run on ten classes is."""
    return {
        "config": json.loads(json.dumps(digits.get_config().to_dict())),
        "class_names": [str(i) for i in range(10)],
        "versions": {"jax": "1"},
    }


@pytest.fixture
def workdir(tmp_path, record):
    """Of that run, with a checkpoint."""
    programs.claim_workdir(str(tmp_path), record)
    checkpoints = Checkpoints(tmp_path)
    mesh = placement.make_mesh(jax.devices()[:1])
    state = TrainState(np.int32(5), {"w": np.ones(3, np.float32)}, {}, (), {}, {})
    checkpoints.save(placement.shard_state(state, mesh), record)
    checkpoints.close()
    return tmp_path


def refused(workdir, record):
    with pytest.raises(UsageError) as error:
        programs.claim_workdir(str(workdir), record)
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
    assert programs.read_config(workdir).to_dict() == record["config"]
    # What is refused leaves nothing.
    assert not any((workdir / name).exists() for name in LOST[names])
    programs.claim_workdir(str(workdir), record)
    assert {name: (workdir / name).read_bytes() for name in LOST["both"]} == before


def test_a_broken_config_is_known_from_the_checkpoint(workdir, record):
    (workdir / "config.json").write_text('{"seed": 0, "mod')
    assert "seed (there 0, now 1)" in refused(workdir, changed(record, seed=1))
    programs.claim_workdir(str(workdir), record)
    assert programs.read_config(workdir).to_dict() == record["config"]


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
    """Such as a folder of images that has got another one since."""
    classes, counts = CLASSES[name]
    sentence = refused(workdir, record | {"class_names": classes})
    assert f"on other classes than those of digits now{counts}, class_names.txt has" in sentence


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
    programs.claim_workdir(str(workdir), other | {"versions": {"jax": "2"}})
    # It is what the run began with.
    assert programs.read_config(workdir).log_every_steps == record["config"]["log_every_steps"]
