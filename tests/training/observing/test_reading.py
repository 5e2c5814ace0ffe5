"""Metrics read back from a file that a kill may have cut off."""

import json
import math

import pytest

from effnetv2_jax.training.observing.reading import (
    evaluation_names,
    read_history,
    read_scores,
    split_stages,
)


def write_lines(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_read_history_merges_training_and_evaluation_of_a_step(tmp_path):
    path = write_lines(
        tmp_path / "metrics.jsonl",
        '{"step": 20, "train/loss": 1.0}',
        '{"step": 10, "train/loss": 2.0}',
        '{"step": 20, "eval/top1": 0.5}',
    )
    assert read_history(path) == [
        {"step": 10, "train/loss": 2.0},
        {"step": 20, "train/loss": 1.0, "eval/top1": 0.5},
    ]


def test_read_history_lets_the_last_line_of_a_step_win(tmp_path):
    path = write_lines(
        tmp_path / "metrics.jsonl",
        '{"step": 10, "train/loss": 2.0, "eval/top1": 0.5}',
        '{"step": 20, "train/loss": 1.0}',
        '{"step": 10, "train/loss": 3.0}',
    )
    assert read_history(path) == [
        {"step": 10, "train/loss": 3.0, "eval/top1": 0.5},
        {"step": 20, "train/loss": 1.0},
    ]


def test_read_history_ignores_every_way_to_cut_the_last_line(tmp_path):
    whole, last = '{"step": 10, "train/loss": 2.0}', '{"step": 20, "train/loss": 1.0}'
    path = tmp_path / "metrics.jsonl"
    for length in range(len(last)):
        path.write_text(f"{whole}\n{last[:length]}")
        assert read_history(path) == [{"step": 10, "train/loss": 2.0}]


def test_read_history_keeps_nan(tmp_path):
    path = write_lines(tmp_path / "metrics.jsonl", '{"step": 10, "train/loss": NaN}')
    assert math.isnan(read_history(path)[0]["train/loss"])


def test_read_history_of_an_empty_file_is_empty(tmp_path):
    assert read_history(write_lines(tmp_path / "metrics.jsonl")) == []


@pytest.mark.parametrize("line", ["no json", '{"step": 10, "tr', '{"train/loss": 1.0}', "[1, 2]"])
def test_read_history_names_a_line_that_is_not_a_record(tmp_path, line):
    path = write_lines(tmp_path / "metrics.jsonl", line, '{"step": 1}')
    with pytest.raises(ValueError, match="line 1"):
        read_history(path)


def test_evaluation_between_logged_steps_belongs_to_the_stage_before_it():
    rows = [
        {"step": 440, "train/loss": 1.0, "train/stage": 0},
        {"step": 450, "eval/top1": 0.9},
        {"step": 460, "train/loss": 1.0, "train/stage": 1},
    ]
    first, second = split_stages(rows)
    assert (first.start, first.end, second.start, second.end) == (440, 450, 450, 460)
    assert [row["step"] for row in first.evals] == [450]
    assert second.evals == ()


def test_evaluations_are_known_by_their_names(tmp_path):
    rows = [
        {"step": 4, "train/loss": 1.0, "real/top1": 0.25, "real/count": 8},
        {"step": 8, "train/loss": 1.0, "eval/top1": 0.5, "eval/loss": 2.0},
        {"step": 12, "time": 3.0, "real/top1": 0.75},
    ]
    assert evaluation_names(rows) == ["real", "eval"]
    path = write_lines(tmp_path / "metrics.jsonl", *map(json.dumps, rows))
    assert read_scores(path) == {8: 0.5}
    assert read_scores(path, "real") == {4: 0.25, 12: 0.75}
    assert read_scores(tmp_path / "nothing") == {}
