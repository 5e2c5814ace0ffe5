import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from effnetv2_jax.training.observing import curves, report
from effnetv2_jax.training.observing.reading import read_history, split_stages


def make_history(stages=4, steps_per_stage=60, log_every=10, with_eval=True):
    """A noisy but falling loss; an evaluation closes each stage. One dict per logged step."""
    noise = np.random.default_rng(0)
    history = []
    for step in range(log_every, stages * steps_per_stage + 1, log_every):
        stage = (step - 1) // steps_per_stage
        row = {
            "step": step,
            "time": 1.79e9 + step,
            "train/loss": 0.5 + 2 * math.exp(-step / 80) + noise.normal(0, 0.05),
            "train/accuracy": 0.9 - 0.8 * math.exp(-step / 80) + noise.normal(0, 0.02),
            "train/learning_rate": 0.002,
            "train/images_per_second": 300.0 - 5 * stage,
            "train/image_size": 32 + 16 * (stage % 5),
            "train/randaugment_magnitude": 5.0 + stage,
            "train/dropout_rate": 0.1,
            "train/mixup_alpha": 0.0,
            "train/stage": stage,
        }
        if with_eval and step % steps_per_stage == 0:
            row |= {"eval/top1": 0.9 + 0.001 * stage, "eval/top5": 0.999, "eval/loss": 0.61}
        history.append(row)
    return history


def write_lines(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def write(workdir, history, title="A run", **facts):
    return report.write_report(workdir, history, title=title, facts=facts)


@pytest.fixture
def small_picture(monkeypatch):
    """Spares the tests of the text the drawing, which takes most of the time."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(curves, "draw", lambda *_, **__: Figure(figsize=(0.2, 0.2)))


def stage_rows(markdown):
    """The cells of the stage table, one list per stage."""
    lines = [line for line in markdown.read_text().splitlines() if line.startswith("|")]
    header = next(i for i, line in enumerate(lines) if line.startswith("| stage |"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[header + 2 :]]


def assert_picture(path):
    from matplotlib.image import imread

    pixels = imread(path)
    assert pixels.shape[:2] == (1350, 1200)
    assert np.isfinite(pixels).all()
    assert (pixels[..., :3].min(axis=-1) < 0.9).mean() > 0.004
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize("count", [1, 4, 44])
def test_report_has_a_picture_and_one_row_per_stage(tmp_path, count):
    png, markdown = write(tmp_path, make_history(stages=count))
    assert (png, markdown) == (tmp_path / "report.png", tmp_path / "report.md")
    assert_picture(png)
    assert [row[0] for row in stage_rows(markdown)] == [str(stage) for stage in range(count)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.md", "report.png"]


def test_markdown_holds_the_numbers(tmp_path, small_picture):
    history = make_history(stages=2)
    history[-1] |= {"train/loss": 0.43215, "eval/top1": 0.9715, "eval/loss": 0.6125}
    _, markdown = write(tmp_path, history, title="My run", model="b0", note="a|b\nc")
    text = markdown.read_text()
    assert text.startswith("# My run\n")
    assert "| **model** | b0 |" in text
    assert "| **note** | a\\|b c |" in text
    assert "](report.png)" in text
    assert "augmented images" in text
    assert stage_rows(markdown)[1] == [
        "1", "70–120", "48", "6", "0.1", "295", "0.4321", "97.15", "99.90", "0.6125",
    ]  # fmt: skip


def test_throughput_is_the_median_of_the_stage(tmp_path, small_picture):
    history = make_history(stages=1)
    history[0]["train/images_per_second"] = 3.0
    history[1]["train/images_per_second"] = math.nan
    assert stage_rows(write(tmp_path, history)[1])[0][5] == "300"


def test_report_without_evaluations(tmp_path):
    png, markdown = write(tmp_path, make_history(with_eval=False))
    assert_picture(png)
    assert all(len(row) == 7 for row in stage_rows(markdown))
    assert "eval top-1" not in markdown.read_text()


def test_report_with_evaluations_only(tmp_path):
    png, markdown = write(tmp_path, [{"step": 5, "eval/top1": 0.5, "eval/loss": 1.0}])
    assert_picture(png)
    assert "## Stages" not in markdown.read_text()


def test_report_shows_losses_that_are_not_finite(tmp_path):
    history = make_history()
    history[3]["train/loss"] = math.nan
    history[-1]["train/loss"] = math.inf
    history[-1]["eval/top1"] = math.nan
    png, markdown = write(tmp_path, history)
    assert_picture(png)
    assert stage_rows(markdown)[-1][6:8] == ["inf", "NaN"]


def test_report_of_a_run_that_is_nan_from_the_start(tmp_path):
    history = [
        {key: math.nan if isinstance(value, float) else value for key, value in row.items()}
        for row in make_history(stages=2)
    ]
    assert_picture(write(tmp_path, history)[0])


def test_report_of_a_stage_whose_steps_were_all_left_out(tmp_path):
    """Such a line of the log has no loss."""
    history = make_history(stages=2)
    stages = {row["train/stage"] for row in history if "train/stage" in row}
    for row in history:
        if row.get("train/stage") == max(stages):
            del row["train/loss"], row["train/accuracy"]
    assert_picture(write(tmp_path, history)[0])


def test_names_that_are_no_text_are_escaped(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    png, markdown = write(tmp_path, make_history(stages=2), title=name, data=f"folder:{name}")
    assert_picture(png)
    assert markdown.read_text().count(r"caf\udce9") == 2


def test_evaluations_that_are_not_finite_are_found():
    history = [
        {"step": 5, "eval/loss": 1.0, "raw/loss": 2.0},
        {"step": 10, "eval/loss": 1.0},
        {"step": 10, "raw/loss": math.inf},
        {"step": 15, "eval/loss": math.nan},
        {"step": 15, "raw/loss": 1.0},
    ]
    assert report.find_not_finite(history, ["eval", "raw"]) == (["eval/loss of step 15"], {5})
    assert report.find_not_finite(history, ["raw"]) == ([], {5, 15})
    assert report.find_not_finite([], ["eval"]) == ([], set())


def test_second_report_replaces_the_first(tmp_path, small_picture):
    write(tmp_path, make_history(), title="first")
    _, markdown = write(tmp_path, make_history(), title="second")
    assert markdown.read_text().startswith("# second")


def test_failed_write_leaves_the_old_report_and_no_temporary(tmp_path, monkeypatch, small_picture):
    png, markdown = write(tmp_path, make_history(stages=1), title="first")
    before = png.read_bytes(), markdown.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(pathlib.Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, make_history(stages=2), title="second")
    assert (png.read_bytes(), markdown.read_bytes()) == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("history", [[], [{"step": 1, "time": 1.0}]])
def test_empty_history_is_an_error_that_says_so(tmp_path, history):
    with pytest.raises(ValueError, match="nothing to report"):
        write(tmp_path, history)
    assert list(tmp_path.iterdir()) == []


def test_history_read_back_from_disk_gives_the_same_report(tmp_path, small_picture):
    history = make_history(stages=2)
    path = write_lines(tmp_path / "metrics.jsonl", *map(json.dumps, history))
    direct = write(tmp_path, history)[1].read_text()
    assert write(tmp_path, read_history(path))[1].read_text() == direct


def test_drawing_leaves_pyplot_alone_and_importing_leaves_matplotlib_alone(tmp_path):
    code = (
        "import sys\n"
        "from effnetv2_jax.training.observing import report\n"
        "assert 'matplotlib' not in sys.modules\n"
        "row = {'step': 1, 'train/loss': 1.0}\n"
        f"report.write_report({str(tmp_path)!r}, [row], title='t', facts={{}})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_named_evaluation_has_its_columns(tmp_path):
    history = make_history(stages=2)
    history[-1] |= {"real, test/top1": 0.5, "real, test/loss": 1.25}
    history[2] |= {"real, test/top1": 0.25, "real, test/top5": 0.75, "real, test/loss": 1.5}
    png, markdown = write(tmp_path, history, model="b0")
    assert_picture(png)
    text = markdown.read_text()
    header = next(line for line in text.splitlines() if line.startswith("| stage |"))
    names = [cell.strip() for cell in header.strip("|").split("|")][7:]
    metrics = ("top-1 (%)", "top-5 (%)", "loss")
    assert names == [f"{name} {x}" for name in ("real, test", "eval") for x in metrics]
    first, second = stage_rows(markdown)
    assert first[7:] == ["25.00", "75.00", "1.5000", "90.00", "99.90", "0.6100"]
    assert second[7:] == ["50.00", "–", "1.2500", "90.10", "99.90", "0.6100"]


def test_curves_of_evaluations_differ_in_colour_and_carry_their_names():
    history = make_history(stages=2)
    for row in history[::2]:
        row |= {f"{name}/top1": 0.9 for name in ("real", "a_name_that_is_long")}
    stages = split_stages(history)
    axes = curves.draw(history, stages, "t", note="").axes[1]
    labels = {text.get_text(): text.get_color() for text in axes.texts}
    names = {"train", "eval", "real", "a_name_that_…"}
    assert names <= set(labels)
    assert len({labels[name] for name in names}) == 4
    heights = sorted(text.get_window_extent().y0 for text in axes.texts if text.get_text() in names)
    assert np.diff(heights).min() > 11  # px; none lies over another
