"""A workdir belongs to one run: lost files come back, and other runs are refused."""

import contextlib
import copy
import errno
import json
import shutil

import jax
import numpy as np
import pytest

from configs import digits
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.files import whole_file
from effnetv2_jax.runtime.recipe import flatten
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
        "data": {"examples": 1437, "names": "ab", "sizes": "12"},
        "versions": {"jax": "1"},
    }


@pytest.fixture
def workdir(tmp_path, record):
    """The workdir of that run, with a checkpoint."""
    claim(str(tmp_path), record)
    save_checkpoint(tmp_path, record)
    return tmp_path


def save_checkpoint(workdir, record):
    checkpoints = Checkpoints(workdir)
    mesh = placement.make_mesh(jax.devices()[:1])
    state = TrainState(np.int32(5), {"w": np.ones(3, np.float32)}, {}, (), {}, {})
    checkpoints.save(placement.shard_state(state, mesh), record)
    checkpoints.close()


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
    there = changed(record, model__dtype="bfloat16")
    claim(str(tmp_path), there)
    save_checkpoint(tmp_path, there)
    assert settle_dtype(config, str(tmp_path)).model.dtype == "bfloat16"
    config.model.dtype = "float32"
    config = settle_dtype(config, str(tmp_path))
    with pytest.raises(UsageError, match=r"model.dtype \(there 'bfloat16', now 'float32'\)"):
        claim(str(tmp_path), record | {"config": config.to_dict()})


LOST = {
    "config.json": ["config.json"],
    "class_names.txt": ["class_names.txt"],
    "data.json": ["data.json"],
    "all": ["config.json", "class_names.txt", "data.json"],
}


@pytest.mark.parametrize("names", LOST)
def test_what_is_lost_is_known_from_the_checkpoint(workdir, record, names):
    before = {name: (workdir / name).read_bytes() for name in LOST["all"]}
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
    assert {name: (workdir / name).read_bytes() for name in LOST["all"]} == before


def test_a_broken_config_is_known_from_the_checkpoint(workdir, record):
    (workdir / "config.json").write_text('{"seed": 0, "mod')
    assert "seed (there 0, now 1)" in refused(workdir, changed(record, seed=1))
    claim(str(workdir), record)
    assert read_config(workdir).to_dict() == record["config"]


def test_another_run_is_refused_with_all_fields_that_differ(workdir, record):
    other = changed(record, model__name="efficientnetv2-s", data__name="synthetic", epochs=8.0)
    other["data"] = {"examples": 8192, "names": "cd", "sizes": ""}
    sentence = refused(workdir, other)
    assert (
        "holds a run with another config: "
        "data.name (there 'digits', now 'synthetic'), epochs (there 16.0, now 8.0), "
        "model.name (there 'efficientnetv2-b0', now 'efficientnetv2-s'), and with other data: "
        "1437 training examples then, 8192 now; "
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
    assert "config: optimizer.options.b2 (there not set, now 0.95); use" in sentence


# None of these reaches training; evaluation, the log, checkpoints and the devices have them.
FREE = {
    "log_every_steps": 7,
    "max_bad_steps": 99,
    "stall_seconds": 1.0,
    "fsdp": 2,
    "model__remat": "blocks",
    "model__scan_blocks": True,
    "checkpoint__every_steps": 3,
    "checkpoint__keep_best": 0,
    "eval_batch_size": 8,
    "eval_image_size": 64,
    "evals": {"raw": {"weights": "raw"}},
    "data__eval_split": "train",
    "data__max_bad_fraction": 0.5,
}


@pytest.mark.parametrize("name", FREE)
def test_a_field_that_changes_no_number_may_differ(workdir, record, name):
    other = changed(record, **{name: FREE[name]})
    claim(str(workdir), other | {"versions": {"jax": "2"}})
    # Evaluation does as the newest start.
    assert read_config(workdir).to_dict() == other["config"]


def another(value):
    """Returns another value of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return 2 * value + 1
        case list():
            return [*value, 1]
        case _:
            return f"{value or ''}x"


def test_every_field_is_free_or_refused(workdir, record):
    """A field that training does not get must be known here: nothing is free by oversight."""
    free = {name.replace("__", ".") for name in FREE} | {
        # The same data in another place are the same data.
        *("data.name", "data.dir", "data.holdout", "data.train_split"),
        *("checkpoint.every_seconds", "checkpoint.keep_newest", "checkpoint.keep_every_steps"),
        # The recipe's schedule draws no sizes, and its network has no layer norm.
        *("schedule.size_step", "model.norm_epsilon", "evals.eval"),
    }
    found = set()
    for name, value in flatten(record["config"]).items():
        other = changed(record, **{name.replace(".", "__"): another(value)})
        try:
            claim(str(workdir), other)
        except UsageError:
            continue
        found.add(name)
        claim(str(workdir), record)
    assert found <= free, found - free


def with_data(record, name="digits", **facts):
    """The record with other facts about its data, and with another data.name."""
    other = changed(record, data__name=name)
    return other | {"data": record["data"] | facts}


def test_data_that_were_moved_are_known_by_what_they_are(workdir, record):
    claim(str(workdir), with_data(record, "folder:elsewhere"))
    assert read_config(workdir).data.name == "folder:elsewhere"
    sentence = refused(workdir, with_data(record, "folder:third", sizes="13"))
    assert (
        "other data: 1437 training examples of the same names, but with files of other sizes, with "
        "data.name (there 'folder:elsewhere', now 'folder:third'); restore the data"
    ) in sentence


def test_files_may_be_mended_in_their_place(workdir, record):
    claim(str(workdir), with_data(record, sizes="13"))


CHANGES = {
    "fewer": ({"examples": 1429, "names": "cd"}, "1437 training examples then, 1429 now; restore"),
    "others": ({"names": "cd"}, "1437 training examples as then, but under other names; restore"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_data_that_have_changed_are_accepted_only_on_request(workdir, record, name, caplog):
    facts, message = CHANGES[name]
    now = with_data(record, **facts)
    sentence = refused(workdir, now)
    assert f"holds a run on other data: {message} the data, use another workdir, or " in sentence
    assert "add --accept_changed_data to go on with what is there now" in sentence
    with caplog.at_level("WARNING", logger="absl"):
        claim(str(workdir), now, accept_changed_data=True)
    assert f"going on with other data, as asked: {message.split(';')[0]}" in caplog.text
    # From then on these are the run's.
    claim(str(workdir), now)
    assert "other data" in refused(workdir, record)
    with pytest.raises(UsageError, match=r"seed \(there 0, now 1\); use"):
        claim(str(workdir), changed(now, seed=1), accept_changed_data=True)


def test_an_old_run_that_did_not_write_down_its_data_goes_on_in_the_same_place(workdir, record):
    old = {name: x for name, x in record.items() if name != "data"}
    shutil.rmtree(workdir / "checkpoints")
    save_checkpoint(workdir, old)
    (workdir / "data.json").unlink()
    moved = with_data(record, "folder:elsewhere")
    assert "data.name (there 'digits', now 'folder:elsewhere'); use" in refused(workdir, moved)
    claim(str(workdir), record)
    claim(str(workdir), moved)


@pytest.mark.parametrize("metrics", ["", '{"step": 4, "train/bad_steps": 4}\n'])
def test_before_a_step_was_trained_a_workdir_takes_any_config(workdir, record, metrics):
    """Such as a smaller batch, if the first one did not fit into memory."""
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "metrics.jsonl").write_text(metrics)
    other = changed(record, batch_size=16, seed=1) | {"class_names": ["a", "b"]}
    claim(str(workdir), other)
    assert read_config(workdir).to_dict() == other["config"]
    assert (workdir / "class_names.txt").read_text() == "a\nb\n"
    (workdir / "metrics.jsonl").write_text('{"step": 4, "train/loss": 2.5}\n')
    assert "batch_size (there 16, now 32), seed (there 1, now 0); use" in refused(workdir, record)


def test_what_a_killed_start_left_half_written_is_removed(workdir, record):
    with contextlib.ExitStack() as killed:
        left = killed.enter_context(whole_file(workdir / "status.json"))
        killed.pop_all()
    claim(str(workdir), record)
    assert not left.exists()


def test_a_full_disk_ends_only_a_run_that_begins(workdir, record, tmp_path_factory, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("effnetv2_jax.runtime.workdir.write_atomically", full)
    claim(str(workdir), changed(record, log_every_steps=7))
    assert read_config(workdir).log_every_steps == record["config"]["log_every_steps"]
    with pytest.raises(UsageError, match="cannot be written: No space left on device"):
        claim(str(tmp_path_factory.mktemp("new")), record)
