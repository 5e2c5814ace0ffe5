"""The folder that ``evaluate --report`` writes: a page, tables, and pictures."""

import csv
import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence

import tensorflow as tf

from effnetv2_jax.data.sources import Split
from effnetv2_jax.data.sources.named_images import NamedImage, printable
from effnetv2_jax.inspection import pictures
from effnetv2_jax.inspection.statistics import (
    Calibration,
    ClassScore,
    Confusions,
    calibrate,
    find_confusions,
    score_classes,
)
from effnetv2_jax.predictions.picture import write_picture
from effnetv2_jax.predictions.prediction import Guess, Prediction
from effnetv2_jax.runtime.errors import UsageError, reason
from effnetv2_jax.runtime.files import whole_file, write_atomically
from effnetv2_jax.training.answers import Answers

MAX_MISTAKES = 24
"""The number of mistakes on the contact sheet."""

# Rows of a table on the page; the CSV files have all.
_ROWS = 30


@dataclasses.dataclass(frozen=True)
class Subject:
    """The network and the images that a report is about.

    Attributes:
        title: The network and the images in half a line.
        split: The images.
        class_names: The names of the classes in the order of their labels.
        image_size: The side of the images in px.
        own_size: The side of the images in the run's own evaluation.
        trained_sizes: The smallest and the largest side in training.
    """

    title: str
    split: Split
    class_names: Sequence[str]
    image_size: int
    own_size: int
    trained_sizes: tuple[float, float]


def make_folder(folder: pathlib.Path) -> None:
    """Makes the folder of a report; raises UsageError if files cannot be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"report {str(folder)!r} cannot be written: {reason(error)}") from error


def write_report(
    folder: pathlib.Path,
    subject: Subject,
    answers: Answers,
    by_size: Mapping[int, Mapping[str, float]],
) -> float:
    """Writes a report of an evaluation; files of an earlier one are replaced.

    The folder gets ``report.md``; ``classes.csv``, ``confusions.csv`` and ``examples.csv``; and
    ``confusions.png``, ``mistakes.png`` if there are mistakes, ``calibration.png``, and
    ``sizes.png`` if there are several sizes.

    Args:
        folder: The folder, from ``make_folder``.
        subject: What it is about.
        answers: The answers to all images.
        by_size: The metrics of each image size.

    Returns:
        The expected calibration error in 0 … 1.

    Raises:
        UsageError: If the folder cannot be written.
    """
    names = subject.class_names
    confusions = find_confusions(answers)
    scores = score_classes(confusions, len(names))
    calibration = calibrate(answers)
    title = f"{subject.title}, {subject.image_size} px"
    figures = {
        "confusions": pictures.draw_confusions(title, scores, confusions, names),
        "calibration": pictures.draw_calibration(title, calibration),
    }
    if len(by_size) > 1:
        figures["sizes"] = pictures.draw_sizes(
            subject.title, by_size, own_size=subject.own_size, trained=subject.trained_sizes
        )
    try:
        for name in ("sizes", "mistakes"):  # of an earlier report
            (folder / f"{name}.png").unlink(missing_ok=True)
        for name, figure in figures.items():
            with whole_file(folder / f"{name}.png") as path:
                figure.savefig(path)
        _write_tables(folder, subject, answers, scores, confusions)
        has_mistakes = _write_mistakes(folder / "mistakes.png", title, subject, answers)
        page = _page(title, names, answers, scores, confusions, calibration, by_size, has_mistakes)
        write_atomically(folder / "report.md", page, errors="replace")
    except OSError as error:
        raise UsageError(f"report {str(folder)!r} cannot be written: {reason(error)}") from error
    return calibration.error


def _write_tables(
    folder: pathlib.Path,
    subject: Subject,
    answers: Answers,
    scores: Sequence[ClassScore],
    confusions: Confusions,
) -> None:
    names, describe = subject.class_names, subject.split.describe

    def share(value: float) -> str:
        return "" if math.isnan(value) else f"{value:.4f}"

    _write_csv(
        folder / "classes.csv",
        "class name images correct accuracy taken_for_it precision often_taken_for times",
        (
            (
                *(x.number, names[x.number], x.images, x.correct, share(x.accuracy), x.predicted),
                *(share(x.precision), "" if x.taken_for is None else names[x.taken_for], x.times),
            )
            for x in scores
        ),
    )
    _write_csv(
        folder / "confusions.csv",
        "class taken_for images",
        (
            (names[label], names[predicted], count)
            for label, predicted, count in zip(*_columns(confusions), strict=True)
        ),
    )
    rows = zip(*_columns(answers), strict=True)
    _write_csv(
        folder / "examples.csv",
        "example class taken_for probability probability_of_class rank loss",
        (
            (
                *(describe(number), names[label], names[best[0]]),
                *(f"{sure[0]:.6g}", f"{own:.6g}", rank + 1, f"{loss:.6g}"),
            )
            for number, label, best, sure, own, rank, loss in rows
        ),
    )


def _columns(table: Answers | Confusions) -> list[list]:
    return [getattr(table, field.name).tolist() for field in dataclasses.fields(table)]


def _write_csv(path: pathlib.Path, header: str, rows: Iterable[Iterable[object]]) -> None:
    with (
        whole_file(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header.split())
        writer.writerows(rows)


def _write_mistakes(path: pathlib.Path, title: str, subject: Subject, answers: Answers) -> bool:
    """Draws the mistakes that give their right class the least; returns False if there are none."""
    wrong = (answers.rank > 0).nonzero()[0]
    worst = wrong[answers.own[wrong].argsort(kind="stable")][:MAX_MISTAKES]
    if not len(worst):
        return False
    names, right = subject.class_names, answers.label[worst].tolist()
    predictions = []
    for row, label in zip(worst.tolist(), right, strict=True):
        classes, probabilities = answers.classes[row].tolist(), answers.probabilities[row].tolist()
        pairs = [*zip(classes, probabilities, strict=True)]
        if label not in answers.classes[row]:
            pairs[-1] = (label, float(answers.own[row]))
        guesses = tuple(Guess(number, names[number], probability) for number, probability in pairs)
        predictions.append(Prediction(_image(subject.split, int(answers.number[row])), guesses))
    heading = f"{title}: the {len(worst)} worst of {len(wrong)} mistakes (green: the right class)"
    with whole_file(path) as temporary:
        write_picture(str(temporary), heading, predictions, right)
    return True


def _image(split: Split, number: int) -> NamedImage:
    """Returns an example's image with its content, under the name that finds it."""
    one = split.read(tf.constant(number, tf.int64), tf.constant(1, tf.int64))
    image = next(iter(one))["image"]
    content = image if image.dtype == tf.string else tf.io.encode_png(image)
    return NamedImage(split.describe(number), content.numpy())


def _page(
    title: str,
    names: Sequence[str],
    answers: Answers,
    scores: Sequence[ClassScore],
    confusions: Confusions,
    calibration: Calibration,
    by_size: Mapping[int, Mapping[str, float]],
    has_mistakes: bool,
) -> str:
    """Returns the report as Markdown."""

    def name(number: int) -> str:
        return printable(names[number]).replace("|", "\\|")

    metrics = answers.metrics()
    with_images = [x for x in scores if x.images]
    balanced = sum(x.accuracy for x in with_images) / len(with_images)
    lines = [
        f"# {title}",
        "",
        f"{metrics['count']} images: top-1 {100 * metrics['top1']:.2f} %, top-5 "
        f"{100 * metrics['top5']:.2f} %, loss {metrics['loss']:.4f}. The mean accuracy of the "
        f"{len(with_images)} classes is {100 * balanced:.2f} %.",
        "",
        "## Classes, the hardest first",
        "",
    ]
    lines += _table(
        ("class", "images", "accuracy", "precision", "most often taken for"),
        [
            (
                name(x.number),
                x.images,
                _percent(x.accuracy),
                _percent(x.precision),
                f"{name(x.taken_for)} ({x.times})" if x.taken_for is not None else "",
            )
            for x in sorted(with_images, key=lambda x: (x.accuracy, -x.images))
        ],
        "classes.csv",
    )
    lines += ["", "![confusions](confusions.png)", "", "## Most frequent mistakes", ""]
    wrong = confusions.label != confusions.predicted
    columns = (column[wrong].tolist() for column in dataclasses.astuple(confusions))
    pairs = zip(*columns, strict=True)
    lines += _table(
        ("class", "taken for", "images"),
        [(name(label), name(other), count) for label, other, count in pairs],
        "confusions.csv",
    )
    if has_mistakes:
        lines += ["", "![the worst mistakes](mistakes.png)"]
    lines += [
        "",
        "`examples.csv` has a line for each image.",
        "",
        "## Calibration",
        "",
        f"Expected calibration error: {100 * calibration.error:.2f} % ({len(calibration.count)} "
        "bins of equal width).",
        "",
        "![calibration](calibration.png)",
    ]
    if len(by_size) > 1:
        lines += ["", "## Image size", ""]
        lines += _table(
            ("px", "top-1", "top-5", "loss"),
            [
                (size, _percent(x["top1"]), _percent(x["top5"]), f"{x['loss']:.4f}")
                for size, x in sorted(by_size.items())
            ],
        )
        lines += ["", "![accuracy against image size](sizes.png)"]
    return "\n".join(lines) + "\n"


def _table(
    header: Sequence[str], rows: Sequence[Sequence[object]], all_rows: str = ""
) -> list[str]:
    """Returns the lines of a table with its first rows, and where the others are."""
    if not rows:
        return ["None."]
    shown = rows[:_ROWS] if all_rows else rows
    lines = [f"| {' | '.join(map(str, row))} |" for row in (header, *shown)]
    lines.insert(1, "|" + "---|" * len(header))
    if len(rows) > len(shown):
        lines += ["", f"`{all_rows}` has all {len(rows)}."]
    return lines


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.2f} %"
