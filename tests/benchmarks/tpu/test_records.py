"""Records of steps that were compiled for TPUs: what they say, and how files of them are kept."""

import dataclasses
import json

import pytest

from effnetv2_jax.benchmarks.tables import costs as table_costs
from effnetv2_jax.benchmarks.tpu import records
from effnetv2_jax.benchmarks.tpu.collectives import Collectives
from effnetv2_jax.runtime.errors import UsageError
from tests.benchmarks.tpu.made_up import FIGURES, GIB, REFUSED, record


@pytest.fixture(autouse=True)
def no_package_file(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "PACKAGE_FILE", tmp_path / "package.json")


def test_a_step_is_both_programs_and_what_lies_beside_them():
    step = record()
    assert step.fits and step.hbm_used == 11 * GIB and step.hbm_margin == 5 * GIB
    assert step.seconds == 0.26 and step.flops == 8e9
    assert step.collectives == {"all-reduce": Collectives(4, 104)}


def test_the_state_that_is_no_argument_counts():
    step = record(dataclasses.replace(FIGURES, beside=7 * GIB))
    assert not step.fits and step.hbm_margin == -GIB


def test_a_refused_program_does_not_fit():
    step = record(REFUSED)
    assert not step.fits and step.hbm_used == 21 * GIB
    assert step.flops is step.seconds is step.collectives is None


def test_accumulation_multiplies_what_is_counted_once():
    step = record(accumulation_steps=4)
    assert step.flops == 5 * 4e9 and step.seconds == 4 * 0.25 + 0.01
    assert step.collectives == {"all-reduce": Collectives(4, 104)}  # counted in the loop already


def test_figures_that_xla_counts_once_are_left_out_for_loops_over_blocks():
    step = record(scan_blocks=True)
    assert step.flops is step.bytes_accessed is step.seconds is None
    assert step.fits
    assert step.collectives == record().collectives


def test_what_was_written_is_found_by_its_step(tmp_path):
    file = tmp_path / "folder" / "steps.json"
    assert records.read(file) == {}
    for one in (record(), record(REFUSED, mixing=True), record(topology="v4:2x2x1")):
        records.write(file, one)
        assert records.read(file)[one.key] == one
    assert len(records.read(file)) == 3
    assert record(image_size=129).key not in records.read(file)
    assert [path.name for path in file.parent.iterdir()] == ["steps.json"]


def test_the_newest_record_of_a_step_counts(tmp_path):
    old, new = (dataclasses.replace(record(), made=f"2026-11-2{day}") for day in (5, 6))
    for package, users in ((old, new), (new, old)):
        records.PACKAGE_FILE.write_text(records.as_text([package]))
        (tmp_path / "mine.json").write_text(records.as_text([users]))
        assert records.read(tmp_path / "mine.json") == {new.key: new}
    records.write(tmp_path / "mine.json", new)
    assert json.loads((tmp_path / "mine.json").read_text())[0]["made"] == new.made


def test_a_file_is_sorted_with_a_line_for_each_field():
    some = [record(image_size=size) for size in (300, 128)]
    text = records.as_text(some)
    assert text == records.as_text(reversed(some))
    fields = json.loads(text)
    assert [one["step"]["image_size"] for one in fields] == [128, 300]
    assert len(text.splitlines()) == 2 + 2 * (2 + len(fields[0]))


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '[{"step": 1}]', "# Notes"])
def test_a_file_of_something_else_is_refused_and_kept(tmp_path, text):
    file = tmp_path / "README.md"
    file.write_text(text)
    for use in (records.read, lambda file: records.write(file, record())):
        with pytest.raises(UsageError, match=r"README\.md' must be a JSON file of compiled steps"):
            use(file)
    assert file.read_text() == text


def test_a_file_that_cannot_be_written_is_a_warning(tmp_path, caplog, monkeypatch):
    def fail(path, text):
        raise PermissionError("permission denied")

    monkeypatch.setattr(records, "write_atomically", fail)
    records.write(tmp_path / "steps.json", record())
    assert "cannot be written" in caplog.text and "permission denied" in caplog.text


def test_what_comes_with_the_package_can_be_read(monkeypatch, tmp_path):
    monkeypatch.undo()
    found = records.read(tmp_path / "none.json")
    assert len(found) >= 30
    for step in found.values():
        assert step.fits == (step.seconds is not None)
        assert step.fits == (step.hbm_used <= step.memory_limit)
        assert step.made and step.versions["libtpu"]
    text = records.PACKAGE_FILE.read_text()
    assert text == records.as_text(found.values())


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"checked": True}, ""),
        ({"program": None}, "compiled from an earlier version of the step (2026-11-25)"),
        ({}, "compiled on 2026-11-25 and not compared with the step as it is now"),
    ],
)
def test_tables_say_if_a_record_may_be_older_than_the_code(changes, remark):
    step = dataclasses.replace(record(), **changes)
    assert step.remark == remark
    assert table_costs.cost_on_tpu(step).note.endswith(remark or "libtpu 0.0.42")
