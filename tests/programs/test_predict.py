"""From images that somebody names to what a network sees in them: text, JSON and a picture."""

import csv
import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys
import weakref
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import tensorflow as tf
from flax import nnx
from PIL import Image

from effnetv2_jax.data import images as data_images
from effnetv2_jax.data.sources.imagenet_classes import imagenet_ids, imagenet_names
from effnetv2_jax.data.sources.named_images import NamedImage
from effnetv2_jax.models import EfficientNetSpec, create_model, get_spec
from effnetv2_jax.predictions import picture, prediction, request
from effnetv2_jax.predictions.prediction import Guess, Prediction
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training.step import normalize
from effnetv2_jax.weights import save_weights

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODEL = "efficientnetv2-tiny"
SPEC = get_spec(MODEL)
NAMES = ("apple", "bread", "cheese", "dill", "egg", "fig", "garlic", "honey", "ice", "jam")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What is known of the network, as ``weights.Loaded`` says it."""

    spec: EfficientNetSpec
    num_classes: int = 10
    class_names: tuple[str, ...] | None = NAMES
    exif_orientation: bool = False

    def __str__(self):
        return "weights made up"


@pytest.fixture(scope="module")
def model():
    """A network whose guesses are far apart."""
    network = create_model(MODEL, num_classes=10, rngs=nnx.Rngs(0))
    network.classifier.kernel[...] *= 30
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five photographs and two files that are none."""
    folder = tmp_path_factory.mktemp("photographs")
    pixels = {
        "a": skimage.data.astronaut(),
        "b": skimage.data.chelsea(),
        "c": skimage.data.coffee(),
        "d": skimage.data.astronaut()[::-1],
        "e": 255 - skimage.data.chelsea(),
    }
    for name, image in pixels.items():
        Image.fromarray(image).resize((60, 40)).save(folder / f"{name}.jpg")
    (folder / "broken").mkdir()
    (folder / "broken" / "half.jpg").write_bytes((folder / "a.jpg").read_bytes()[:400])
    (folder / "broken" / "text.png").write_text("this is a text")
    return folder


def answered(model, arguments, stdin=b"", loaded=None, **values):
    """(exit code, what is printed)."""
    stdout = io.StringIO()
    code = request.answer(
        [str(x) for x in arguments],
        io.BytesIO(stdin),
        stdout,
        load_model=lambda: (model, loaded or Loaded(SPEC)),
        **values,
    )
    return code, stdout.getvalue()


def by_hand(model, path, image_size, family="v2"):
    """Probabilities [10] of one file, one operation after the other."""
    family = get_preprocessing(family)
    pixels = data_images.eval_image(tf.io.read_file(str(path)), image_size, family).numpy()
    logits = nnx.jit(lambda model, x: model(x))(
        model, normalize(pixels[None], family.mean, family.std)
    )
    return np.asarray(jax.nn.softmax(logits))[0]


def test_the_likeliest_classes_of_each_image_in_order(model, folder):
    code, text = answered(model, [folder / "c.jpg", folder / "a.jpg"], format="json", top=3)
    assert code == 0
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["image"] for line in lines] == [f"{folder}/c.jpg", f"{folder}/a.jpg"]
    for line in lines:
        expected = by_hand(model, line["image"], 32)
        order = np.argsort(-expected)[:3]
        assert [guess["class"] for guess in line["predictions"]] == order.tolist()
        assert [guess["name"] for guess in line["predictions"]] == [NAMES[i] for i in order]
        found = [guess["probability"] for guess in line["predictions"]]
        np.testing.assert_allclose(found, expected[order], rtol=1e-4)


def test_a_folder_becomes_a_table_of_one_record_per_image(model, folder, tmp_path):
    path = tmp_path / "new" / "out.csv"
    code, printed = answered(model, [folder], top=2, output=str(path), batch_size=2)
    assert (code, printed) == (1, "")
    with path.open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    _, lines = answered(model, [folder], top=2, format="json", batch_size=2)
    for record, line in zip(records, map(json.loads, lines.splitlines()), strict=True):
        expected = {"image": line["image"]}
        for rank, guess in enumerate(line["predictions"], 1):
            expected |= {f"{name}_{rank}": str(value) for name, value in guess.items()}
        assert record == expected
    # The same to standard output, and JSON into a file.
    assert answered(model, [folder], top=2, format="csv", batch_size=2)[1] == path.read_text()
    answered(model, [folder], top=2, output=str(tmp_path / "out.json"), batch_size=2)
    assert (tmp_path / "out.json").read_text() == lines


def test_names_in_a_table_may_hold_anything():
    guesses = (Guess(0, 'a "b", c', 0.5), Guess(1, "d\ne", 0.25))
    text = request.as_csv(Prediction(NamedImage("x,y.jpg"), guesses))
    (record,) = csv.reader(io.StringIO(text, newline=""))
    assert record == ["x,y.jpg", "0", 'a "b", c', "0.5", "1", "d\ne", "0.25"]


def test_predictions_are_not_kept(model, folder, monkeypatch):
    """Any number of images needs the memory of a batch."""
    alive, most = weakref.WeakSet(), 0

    def watched(prediction):
        nonlocal most
        alive.add(prediction.image)
        most = max(most, len(alive))
        return ""

    monkeypatch.setattr(request, "as_json", watched)
    images = [NamedImage(str(folder / "a.jpg")) for _ in range(40)]
    monkeypatch.setattr(request, "find_images", lambda *_: images)
    monkeypatch.setattr(request, "predict", lambda *_, **__: made(40))

    def made(count):
        for number in range(count):
            yield Prediction(NamedImage(str(number)), (Guess(0, "a", 1.0),))

    answered(model, ["x"], format="json")
    assert most <= 3


def test_a_table_that_cannot_be_finished_is_not_there(model, folder, tmp_path):
    path = tmp_path / "out.csv"
    with pytest.raises(UsageError, match="none of the 2 images can be decoded"):
        answered(model, [folder / "broken"], output=str(path))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match=r"output '/proc/x\.csv' cannot be written"):
        answered(model, [folder / "a.jpg"], output="/proc/x.csv")


def test_size_and_family_can_be_chosen(model, folder):
    path = folder / "b.jpg"
    values = {"image_size": 24, "preprocessing": "lite", "format": "json", "top": 10}
    _, text = answered(model, [path], **values)
    found = {guess["class"]: guess["probability"] for guess in json.loads(text)["predictions"]}
    expected = by_hand(model, path, 24, "lite")
    np.testing.assert_allclose([found[i] for i in range(10)], expected, rtol=1e-4)
    assert np.abs(expected - by_hand(model, path, 32)).max() > 0.01


def test_batches_hold_all_images_and_one_program_serves_them(model, folder, monkeypatch):
    steps, shapes = [], []

    def remember(*arguments, **keywords):
        step = make(*arguments, **keywords)
        steps.append(step)

        def watched(params, batch_stats, images):
            shapes.append(images.shape)
            return step(params, batch_stats, images)

        return watched

    make = prediction._make_predict_step
    monkeypatch.setattr(prediction, "_make_predict_step", remember)
    paths = sorted(folder.glob("*.jpg"))
    _, alone = answered(model, paths, format="json")
    _, batched = answered(model, paths, format="json", batch_size=2)
    assert [step._cache_size() for step in steps] == [1, 1]
    assert shapes == [(5, 32, 32, 3), *[(2, 32, 32, 3)] * 3]
    alone, batched = ([json.loads(line) for line in x.splitlines()] for x in (alone, batched))
    assert [line["image"] for line in batched] == list(map(str, paths))
    for one, other in zip(alone, batched, strict=True):
        assert [x["class"] for x in one["predictions"]] == [
            x["class"] for x in other["predictions"]
        ]
        assert one["predictions"][0]["probability"] == pytest.approx(
            other["predictions"][0]["probability"], rel=1e-4
        )


def test_what_cannot_be_decoded_is_named_and_left_out(model, folder, caplog):
    code, text = answered(model, [folder, folder / "a.jpg"], format="json", batch_size=3)
    assert code == 1
    names = [json.loads(line)["image"] for line in text.splitlines()]
    assert names == [f"{folder}/{x}.jpg" for x in "abcdea"]
    left_out = [line for line in caplog.messages if "cannot be decoded" in line]
    assert len(left_out) == 2
    assert f"{folder}/broken/half.jpg (" in left_out[0] and "Invalid JPEG data" in left_out[0]
    assert f"{folder}/broken/text.png (it is no image of a known format)" in left_out[1]


def test_an_image_may_come_from_standard_input(model, folder):
    content = (folder / "b.jpg").read_bytes()
    _, text = answered(model, ["-"], stdin=content, format="json")
    _, same = answered(model, [folder / "b.jpg"], format="json")
    assert json.loads(text) == json.loads(same) | {"image": "-"}


def test_the_table_has_aligned_columns():
    guesses = (Guess(3, "dill", 0.98765), Guess(4, "egg", 0.005))
    names = ["b.jpg", "日本.jpg"]
    width = request.column_width(names)
    lines = [request.as_table(Prediction(NamedImage(name), guesses), width) for name in names]
    assert lines == [
        "b.jpg      98.77 %  dill\n            0.50 %  egg",
        "日本.jpg   98.77 %  dill\n            0.50 %  egg",
    ]
    long = "x" * 100
    assert request.column_width([long]) == request.MAX_COLUMN
    text = request.as_table(Prediction(NamedImage(long), guesses), request.MAX_COLUMN)
    assert text.startswith(f"{long}   98.77 %  dill\n{' ' * request.MAX_COLUMN}    0.50")


def test_names_that_are_no_text_are_printed_and_read_back():
    name = os.fsdecode(b"caf\xe9\n.png")
    shown = Prediction(NamedImage(name), (Guess(0, "a\x1b[31m", 1 / 3),))
    assert request.as_table(shown, 9) == "caf��.png   33.33 %  a�[31m"
    line = request.as_json(shown)
    assert line.isascii() and "\n" not in line
    assert json.loads(line)["image"] == name
    assert json.loads(line)["predictions"][0]["probability"] == 0.3333333


@pytest.mark.parametrize(
    ("names", "num_classes", "expected"),
    [
        (NAMES, 10, NAMES),
        (None, 3, ("class 0", "class 1", "class 2")),
        (None, 1000, imagenet_names()),
        (imagenet_ids(), 1000, imagenet_names()),
    ],
)
def test_classes_are_called_what_the_weights_say_or_what_they_must_be(names, num_classes, expected):
    assert request.class_names(names, num_classes) == expected


def test_few_classes_are_all_shown(model, folder):
    network = create_model(MODEL, num_classes=2, rngs=nnx.Rngs(0))
    loaded = Loaded(SPEC, num_classes=2, class_names=None)
    _, text = answered(network, [folder / "a.jpg"], loaded=loaded)
    assert [line.split("%")[1].strip() for line in text.splitlines()] in (
        ["class 0", "class 1"],
        ["class 1", "class 0"],
    )


class TestWhatCannotBeUsed:
    """Each is one sentence, without a network where that is possible."""

    MESSAGES: ClassVar = [
        ({"top": 0}, "top must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"image_size": -1}, "image_size must be at least 1, got -1"),
        ({"format": "tabel"}, "unknown format 'tabel': did you mean table?"),
        ({"output": "out.xls"}, "output 'out.xls' must end in one of .csv, .json"),
        ({"preprocessing": "v3"}, "unknown preprocessing 'v3'"),
        ({"picture": "out"}, "picture 'out' must end in one of"),
        ({"picture": "out.doc"}, "picture 'out.doc' must end in one of"),
    ]

    @pytest.mark.parametrize(("values", "message"), MESSAGES)
    def test_values(self, values, message):
        with pytest.raises(UsageError) as error:
            answered(None, [], **values)
        assert message in str(error.value)

    def test_more_classes_than_there_are(self, model, folder):
        with pytest.raises(
            UsageError, match="top must be at most the number of classes, 10, got 11"
        ):
            answered(model, [folder / "a.jpg"], top=11)

    def test_a_network_without_classifier(self, model, folder):
        with pytest.raises(UsageError, match="no classifier"):
            answered(
                model, [folder / "a.jpg"], loaded=Loaded(SPEC, num_classes=0, class_names=None)
            )

    def test_no_image(self):
        with pytest.raises(UsageError, match="no images are named"):
            answered(None, [])

    def test_no_image_that_can_be_decoded(self, model, folder):
        with pytest.raises(UsageError, match="none of the 2 images can be decoded"):
            answered(model, [folder / "broken"])

    def test_weights_that_are_not_finite(self, folder):
        network = create_model(MODEL, num_classes=10, rngs=nnx.Rngs(0))
        network.classifier.bias[...] = network.classifier.bias[...].at[3].set(jnp.nan)
        with pytest.raises(UsageError, match="not finite"):
            answered(network, [folder / "a.jpg"])


def drawn(path):
    """Pixels uint8 [height, width, 3]."""
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (3, 1, 3), (7, 2, 4)])
def test_the_picture_has_a_cell_for_each_image(tmp_path, count, columns, rows):
    content = io.BytesIO()
    Image.new("RGB", (400, 200), (200, 10, 30)).save(content, "PNG")
    guesses = tuple(Guess(i, "a class with a name " * 5, p) for i, p in enumerate((1.0, 0.25)))
    image = NamedImage("/folder" * 40 + r"/x$\y$.png", content.getvalue())
    path = tmp_path / "new" / "picture.png"
    picture.write_picture(str(path), "title", [Prediction(image, guesses)] * count)
    pixels = drawn(path)
    dots = picture._DPI
    width, height = picture._CELL_WIDTH + picture._BETWEEN, picture._CELL_HEIGHT + picture._BETWEEN
    assert pixels.shape[1] == pytest.approx(
        dots * (2 * picture._MARGIN + columns * width - picture._BETWEEN), abs=2
    )
    assert pixels.shape[0] == pytest.approx(dots * (picture._TITLE + rows * height), abs=2)
    # Each image in its own shape: two squares wide, one high.
    red = (pixels == (200, 10, 30)).all(axis=-1).sum() / (picture._SQUARE * dots) ** 2
    assert red == pytest.approx(count / 2, rel=0.02)
    # A full bar, and a quarter of one.
    blue = (pixels == (0x00, 0x72, 0xB2)).all(axis=-1).sum() / (
        dots**2 * picture._ROWS * picture._BAR
    )
    assert blue == pytest.approx(1.25 * count, rel=0.1)
    # Nothing is cut off: names end before the margin, and before the next cell.
    assert (pixels[:, -int(dots * picture._MARGIN) :] == 255).all()
    for column in range(1, columns):
        left = int(dots * (picture._MARGIN + column * width - picture._BETWEEN))
        assert (pixels[:, left + 2 : left + int(dots * picture._BETWEEN) - 2] == 255).all()


def test_names_are_shortened_where_they_say_least():
    room = 10 * picture._width("x") + 0.001
    assert picture._beginning_of("0123456789", room) == "0123456789"
    assert picture._beginning_of("01234567 9a", room) == "01234567…"
    assert picture._end_of("0123456789", room) == "0123456789"
    assert picture._end_of("folder/cat.jpg", room) == "…r/cat.jpg"


def test_a_picture_has_so_many_images_at_most(model, folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(request, "MAX_IMAGES", 2)
    caplog.set_level("INFO", logger="absl")
    path = tmp_path / "picture.png"
    code, text = answered(model, sorted(folder.glob("*.jpg")), picture=str(path), top=1)
    assert (code, len(text.splitlines())) == (0, 5)
    assert "the picture has the first 2 of 5 images" in caplog.messages
    assert drawn(path).shape[0] < 2.2 * picture._DPI * (picture._CELL_HEIGHT + picture._BETWEEN)


def test_a_picture_that_cannot_be_written_is_named(model, folder):
    with pytest.raises(UsageError, match=r"picture '/proc/x\.png' cannot be written"):
        answered(model, [folder / "a.jpg"], picture="/proc/x.png")


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(model, path, class_names=NAMES)
    return path


def command(weights, *arguments):
    return [
        sys.executable,
        "-m",
        "effnetv2_jax.predict",
        f"--weights={weights}",
        *map(str, arguments),
    ]


def run(*arguments, **keywords):
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, timeout=300, check=False, **keywords
    )


def test_predictions_go_to_standard_output_and_all_else_to_standard_error(weights, folder):
    result = run(weights, "--top=2", folder / "b.jpg", folder / "broken")
    lines = result.stdout.decode().splitlines()
    assert result.returncode == 1, result.stderr
    assert len(lines) == 2
    assert lines[0].startswith(f"{folder}/b.jpg ")
    assert all(line.split("%  ")[1] in NAMES for line in lines)
    errors = result.stderr.decode().splitlines()
    assert len([line for line in errors if str(folder) in line]) == 2
    assert any(
        line.startswith(f"left out, as it cannot be decoded: {folder}/broken/half")
        for line in errors
    )
    assert not [line for line in errors if "rendezvous" in line or "Traceback" in line]


def test_who_reads_may_stop_reading(weights, folder):
    names = f"{folder}/a.jpg\n" * 300
    with subprocess.Popen(
        command(weights, "-", "--batch_size=4"),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdin.write(names.encode())
        process.stdin.close()
        assert process.stdout.readline().startswith(f"{folder}/a.jpg".encode())
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait(timeout=300) == 141  # 128 + SIGPIPE
    assert "Traceback" not in errors and "Broken pipe" not in errors
