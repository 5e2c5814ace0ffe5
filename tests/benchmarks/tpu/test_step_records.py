"""What is remembered of a compiled step, and when it no longer holds."""

import dataclasses
import json
import pathlib
import shutil

import pytest

from effnetv2_jax.benchmarks.tables import costs as table_costs
from effnetv2_jax.benchmarks.tpu import compile as tpu_compile
from effnetv2_jax.benchmarks.tpu import step_records
from effnetv2_jax.benchmarks.tpu.step_records import digest_of

REQUEST = {"topology": "v3:4x4", "arguments": {"model": "efficientnetv2-s", "image_size": 128}}
REPORT = {
    "versions": {"jax": step_records.metadata.version("jax"), "not-installed-here": "1"},
    "modules": ["effnetv2_jax.models.layers", "effnetv2_jax.runtime.errors"],
    "figures": {"gradients": 1.5},
}
WHOLE_REPORT = REPORT | {
    "device_kind": "TPU v3",
    "cores": 32,
    "memory_limit": 10,
    "figures": {
        "gradients": {
            "refused": False,
            "arguments": 1,
            "memory": 2,
            "memory_limit": None,
            "flops": 1.0,
            "bytes_accessed": 1.0,
            "seconds": 0.5,
            "collectives": {},
            "compile_seconds": 1.0,
        }
    },
    "beside": {"gradients": 1},
    "loop_runs": {"gradients": 1},
}


@pytest.fixture(autouse=True)
def nothing_shipped(monkeypatch, tmp_path):
    monkeypatch.setattr(step_records, "SHIPPED", tmp_path / "shipped")


def test_what_was_written_is_found_by_its_request(tmp_path):
    step_records.write(tmp_path, REQUEST, REPORT)
    # The order of what was asked says nothing.
    assert step_records.read(tmp_path, dict(reversed(REQUEST.items()))) == REPORT
    other = REQUEST | {"topology": "v4:2x2x1"}
    assert step_records.read(tmp_path, other) is None
    assert step_records.read(tmp_path / "missing", REQUEST) is None


def test_what_came_with_the_package_is_found(tmp_path):
    step_records.write(tmp_path / "shipped", REQUEST, REPORT)
    assert step_records.read(tmp_path / "mine", REQUEST) == REPORT


def change(folder, **fields):
    (file,) = folder.glob("*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_other_code_makes_it_void(tmp_path):
    step_records.write(tmp_path, REQUEST, REPORT)
    digests = step_records.digests(REPORT["modules"])
    change(tmp_path, modules=digests | {"effnetv2_jax.runtime.errors": "0" * 16})
    assert step_records.read(tmp_path, REQUEST) is None
    change(tmp_path, modules=digests)
    assert step_records.read(tmp_path, REQUEST) == REPORT
    change(tmp_path, modules=digests | {"effnetv2_jax.that_is_gone": "0" * 16})
    assert step_records.read(tmp_path, REQUEST) is None


@pytest.mark.parametrize(("version", "found"), [(None, True), ("0.0.1", False)])
def test_other_versions_make_it_void_where_they_are_installed(tmp_path, version, found):
    versions = REPORT["versions"] | ({"jax": version} if version else {})
    step_records.write(tmp_path, REQUEST, REPORT | {"versions": versions})
    assert (step_records.read(tmp_path, REQUEST) is not None) is found


def test_with_flags_for_the_compiler_nothing_is_remembered(tmp_path, monkeypatch):
    step_records.write(tmp_path / "without", REQUEST, REPORT)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_some_flag=true")
    assert step_records.read(tmp_path / "without", REQUEST) is None
    step_records.write(tmp_path / "with", REQUEST, REPORT)
    assert not (tmp_path / "with").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"report": 1, "modules": {}}', '{"report": {'])
def test_a_damaged_record_is_none(tmp_path, text):
    step_records.write(tmp_path, REQUEST, REPORT)
    (file,) = tmp_path.glob("*.json")
    file.write_text(text)
    assert step_records.read(tmp_path, REQUEST) is None


def test_a_folder_that_cannot_be_written_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    step_records.write(tmp_path / "file", REQUEST, REPORT)


def test_a_digest_is_of_code_not_of_what_is_said_about_it():
    code = 'def f(x):\n    """Doc."""\n    return x + 1  # one\n'
    assert digest_of(code) == digest_of("def f(x):\n    return (x\n      + 1)\n")
    assert digest_of(code) != digest_of("def f(x):\n    return x + 2\n")
    assert digest_of('x = "a"') != digest_of('x = "b"')
    assert digest_of('class A:\n    """Doc."""\n') == digest_of("class A:\n    pass\n")


def test_a_module_of_others_is_not_read(tmp_path):
    assert step_records.digests(["json", "effnetv2_jax.runtime.errors"])["json"] == ""


def test_a_recorded_step_needs_no_libtpu(tmp_path, monkeypatch):
    asked = []

    def compiled(request, on_phase):
        asked.append(request)
        return WHOLE_REPORT

    arguments = {"image_size": 128, "batch_per_core": 4, "cache": tmp_path}
    monkeypatch.setattr(tpu_compile, "run_worker", compiled)
    monkeypatch.setattr(tpu_compile, "check_lock", lambda: None)
    with pytest.raises(tpu_compile.NotRecorded, match="efficientnetv2-s at 128 px"):
        tpu_compile.compile_train_step("efficientnetv2-s", recorded_only=True, **arguments)
    monkeypatch.setattr(tpu_compile.importlib.util, "find_spec", lambda name: object())
    first = tpu_compile.compile_train_step("efficientnetv2-s", **arguments)
    monkeypatch.undo()
    monkeypatch.setattr(tpu_compile, "run_worker", None)
    monkeypatch.setattr(step_records, "SHIPPED", tmp_path / "shipped")
    assert tpu_compile.compile_train_step("efficientnetv2-s", **arguments) == first
    assert len(asked) == 1
    # An option more is another step.
    with pytest.raises(tpu_compile.NotRecorded):
        tpu_compile.compile_train_step(
            "efficientnetv2-s", mixing=True, recorded_only=True, **arguments
        )
    shutil.rmtree(tmp_path / "steps")
    with pytest.raises(tpu_compile.NotRecorded):
        tpu_compile.compile_train_step("efficientnetv2-s", recorded_only=True, **arguments)


def test_what_comes_with_the_package_can_be_read():
    files = sorted(
        (pathlib.Path(step_records.__file__).parents[1] / "compiled_steps").glob("*.json")
    )
    assert len(files) >= 30
    for file in files:
        record = json.loads(file.read_text())
        arguments = record["request"]["arguments"]
        step = tpu_compile.combine(
            record["report"],
            model=arguments["model"],
            image_size=arguments["image_size"],
            topology=record["request"]["topology"],
            batch_per_core=arguments["batch_per_core"],
            options={},
        )
        assert step.fits == (step.seconds is not None)
        assert set(record["modules"]) >= {
            "effnetv2_jax.models.layers",
            "effnetv2_jax.training.step",
        }


def test_a_step_of_earlier_code_will_do_where_nothing_may_be_compiled(tmp_path, monkeypatch):
    arguments = {"image_size": 128, "batch_per_core": 4, "cache": tmp_path}
    monkeypatch.setattr(tpu_compile, "run_worker", lambda *_: WHOLE_REPORT)
    monkeypatch.setattr(tpu_compile, "check_lock", lambda: None)
    monkeypatch.setattr(tpu_compile.importlib.util, "find_spec", lambda name: object())
    now = tpu_compile.compile_train_step("efficientnetv2-s", **arguments)
    monkeypatch.setattr(step_records, "digests", lambda modules: {"effnetv2_jax": "changed"})
    later = tpu_compile.compile_train_step("efficientnetv2-s", recorded_only=True, **arguments)
    assert later == dataclasses.replace(now, outdated=True)
    assert "before the code of the step changed" in table_costs._cost_on_tpu(later).note
    assert "changed" not in table_costs._cost_on_tpu(now).note
