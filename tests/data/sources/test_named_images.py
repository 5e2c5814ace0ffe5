"""Which images arguments stand for, and that they are read as a data set."""

import io
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from effnetv2_jax.data.sources.named_images import (
    NamedImage,
    find_images,
    named_source,
    printable,
    small_copy,
)
from effnetv2_jax.runtime.errors import UsageError


def encode(form, size=(3, 2)):
    file = io.BytesIO()
    Image.new("RGB", size, (200, 10, 30)).save(file, form)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/y.webp", "a/.hidden.png", ".git/x.png", "c.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode("PNG"))
    return tmp_path


def found(*arguments, stdin=b""):
    return [image.name for image in find_images(list(arguments), lambda: stdin)]


def test_a_folder_stands_for_the_images_below_it_in_the_order_of_their_paths(folder):
    expected = [f"{folder}/a/y.webp", f"{folder}/a/z.JPG", f"{folder}/b.png"]
    assert found(str(folder)) == found(f"{folder}/") == expected


def test_arguments_keep_their_order_and_a_files_name_may_end_anyhow(folder):
    names = [f"{folder}/c.txt", f"{folder}/b.png"]
    assert found(*names) == names
    assert found(names[1], f"{folder}/a")[:2] == [names[1], f"{folder}/a/y.webp"]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_standard_input_may_be_an_image(form):
    content = encode(form)
    assert find_images(["-"], lambda: content) == [NamedImage("-", content)]


@pytest.mark.parametrize("name", ["BMW of mine.png", "GIF8.png", "RIFF.png"])
def test_standard_input_may_be_names_even_if_they_begin_as_an_image_does(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    (folder / name).write_bytes(encode("PNG"))
    assert found("-", stdin=f"{name}\n\nb.png\r\na".encode()) == [
        name,
        "b.png",
        "a/y.webp",
        "a/z.JPG",
    ]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([], b"", "no images are named"),
        (["nowhere.jpg"], b"", "'nowhere.jpg' does not exist"),
        (["-"], b"nowhere.jpg", "'nowhere.jpg' does not exist"),
        (["-"], b" \n", "but is nothing"),
        (["-"], b"MZ\0\0", "but is something else"),
        (["empty"], b"", "the folder 'empty' has no images, whose names end in .jpg"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, monkeypatch, arguments, stdin, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(UsageError) as error:
        found(*arguments, stdin=stdin)
    assert message in str(error.value)


def test_a_name_need_not_be_text(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9\n.png"
    with open(path, "wb") as file:
        file.write(encode("PNG"))
    images = find_images([str(tmp_path), os.fsdecode(path)], lambda: b"")
    assert [os.fsencode(image.name) for image in images] == [path, path]
    assert printable(images[0].name) == f"{tmp_path}/caf��.png"
    assert named_source(images).split("all").describe(0) == f"{tmp_path}/caf��.png"
    assert small_copy(images[0], 8).shape == (2, 3, 3)


def test_files_and_standard_input_are_one_data_set(folder):
    content = encode("BMP")
    images = [
        NamedImage(f"{folder}/b.png"),
        NamedImage("-", content),
        NamedImage(f"{folder}/c.txt"),
    ]
    split = named_source(images).split("any")
    rows = split.read(tf.constant(0, tf.int64), tf.constant(3, tf.int64))
    assert [row["image"].numpy() for row in rows] == [encode("PNG"), content, encode("PNG")]
    assert split.parse(tf.constant(1, tf.int64))["image"].numpy() == content


@pytest.mark.parametrize(
    ("size", "shape"), [((300, 100), (10, 30)), ((20, 30), (30, 20)), ((900, 2), (1, 30))]
)
def test_a_small_copy_keeps_the_shape(size, shape):
    copy = small_copy(NamedImage("-", encode("PNG", size)), 30).numpy()
    assert copy.shape == (*shape, 3)
    assert copy.dtype == np.uint8
    assert (copy == (200, 10, 30)).all()
