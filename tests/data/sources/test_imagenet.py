"""The official TFRecord files: which files make a split, and what their labels become."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from effnetv2_jax.data.sources import imagenet
from effnetv2_jax.runtime.errors import UsageError


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def feature(value):
    if isinstance(value, bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=value))


def write(file, *examples):
    with tf.io.TFRecordWriter(str(file)) as writer:
        for example in examples:
            features = {name: feature(value) for name, value in example.items()}
            message = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(message.SerializeToString())


def imagenet_example(label, image=b"jpeg"):
    return {"image/encoded": image, "image/class/label": [label], "image/height": [4]}


def imagenet21k_example(labels, image=b"jpeg"):
    return {"id": b"n00000000_1", "image": image, "labels": labels}


def read(split):
    dataset = split.read(tf.constant(0, tf.int64), tf.constant(split.size, tf.int64))
    return list(dataset.as_numpy_iterator())


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def imagenet_dir(tmp_path):
    """24 train files of one example and 2 validation files; the labels count the files."""
    for i in range(24):
        write(tmp_path / f"train-{i:05d}-of-00024", imagenet_example(i + 1, png(i)))
    for i in range(2):
        write(tmp_path / f"validation-{i:05d}-of-00002", imagenet_example(1000 - i))
    (tmp_path / "README").touch()
    return str(tmp_path)


@pytest.fixture
def imagenet21k_dir(tmp_path):
    for i in range(24):
        write(tmp_path / f"imagenet21k-{i:05d}", imagenet21k_example([i]))
    return tmp_path


IMAGENET_LABELS = {
    "train": range(20, 24),
    "minival": range(20),
    "trainval": range(24),
    "eval": [999, 998],
    "validation": [999, 998],
    "test": [999, 998],
}


@pytest.mark.parametrize("name", IMAGENET_LABELS)
def test_imagenet_splits(imagenet_dir, name):
    split = imagenet.imagenet_source(imagenet_dir).split(name)
    examples = read(split)
    assert [example["label"] for example in examples] == list(IMAGENET_LABELS[name])
    assert examples[0]["label"].dtype == np.int64
    assert split.size == len(examples)


def test_imagenet_examples(imagenet_dir):
    source = imagenet.imagenet_source(imagenet_dir)
    split = source.split("train")
    assert read(split)[2]["image"] == png(22)
    assert split.describe(2) == f"{imagenet_dir}/train-00022-of-00024, record 0"
    assert source.name == "imagenet2012"
    assert source.num_classes == len(set(source.class_names)) == 1000
    assert source.class_names[0] == "n01440764"
    assert list(source.class_names) == sorted(source.class_names)


def test_files_named_val(tmp_path):
    write(tmp_path / "train-0", imagenet_example(1))
    write(tmp_path / "val-0", imagenet_example(3))
    split = imagenet.imagenet_source(str(tmp_path)).split("eval")
    assert [example["label"] for example in read(split)] == [2]


@pytest.mark.parametrize("label", [0, 1001, -1])
def test_imagenet_labels_out_of_range(tmp_path, label):
    write(tmp_path / "train-0", imagenet_example(1000), imagenet_example(label))
    split = imagenet.imagenet_source(str(tmp_path)).split("minival")
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=rf"must be in 1\.\.\.1000 \(0 is the background\), but is\] \[{label}\]",
    ):
        read(split)


def test_imagenet_without_a_label(tmp_path):
    write(tmp_path / "train-0", {"image/encoded": b"jpeg"})
    split = imagenet.imagenet_source(str(tmp_path)).split("minival")
    with pytest.raises(tf.errors.InvalidArgumentError, match="image/class/label"):
        read(split)


def test_is_imagenet_dir(imagenet_dir, tmp_path):
    assert imagenet.is_imagenet_dir(imagenet_dir)
    assert not imagenet.is_imagenet_dir(f"{imagenet_dir}/missing")
    other = tmp_path / "other"
    (other / "train").mkdir(parents=True)
    assert not imagenet.is_imagenet_dir(str(other))


def test_imagenet_files_missing(tmp_path):
    advice = r": put the TFRecord files train-00000-of-01024 … .*, or prepare it with TFDS$"
    with pytest.raises(UsageError, match="has no files train\\*" + advice):
        imagenet.imagenet_source(str(tmp_path))
    with pytest.raises(UsageError, match="missing' cannot be listed" + advice):
        imagenet.imagenet_source(str(tmp_path / "missing"))


def test_split_without_files(tmp_path):
    for i in range(20):
        write(tmp_path / f"train-{i:05d}", imagenet_example(1))
    source = imagenet.imagenet_source(str(tmp_path))
    with pytest.raises(
        UsageError,
        match=r"split 'train' of imagenet2012: it takes those from the 21st on of the files "
        r"train\*, and data_dir .* has 20$",
    ):
        source.split("train")
    with pytest.raises(UsageError, match=r"takes all of the files val\*, .* has 0$"):
        source.split("eval")
    assert source.split("minival").size == 20


def test_unknown_split(imagenet_dir):
    with pytest.raises(UsageError, match=r"unknown split of imagenet2012 'trian': .* train.* eval"):
        imagenet.imagenet_source(imagenet_dir).split("trian")


def test_empty_files(imagenet_dir, tmp_path):
    for i in (1, 3):
        (tmp_path / f"train-{i:05d}-of-00024").write_bytes(b"")
    with pytest.raises(
        UsageError, match=r"without any records: .*train-00001.*, .*train-00003.*; copy them again"
    ):
        imagenet.imagenet_source(imagenet_dir).split("trainval")


def labels_of(*labels):
    return [*labels, *[-1] * (imagenet.MAX_LABELS - len(labels))]


IMAGENET21K_LABELS = {
    "train": range(20, 24),
    "minival": range(16, 20),
    "eval": range(16),
    "trainval": range(24),
}


@pytest.mark.parametrize("name", IMAGENET21K_LABELS)
@pytest.mark.parametrize("prefix", ["imagenet21k", "train"])
def test_imagenet21k_splits(imagenet21k_dir, name, prefix):
    for file in list(imagenet21k_dir.iterdir()):
        file.rename(imagenet21k_dir / file.name.replace("imagenet21k", prefix))
    split = imagenet.imagenet21k_source(str(imagenet21k_dir)).split(name)
    labels = [list(example["label"]) for example in read(split)]
    assert labels == [labels_of(label) for label in IMAGENET21K_LABELS[name]]


def test_imagenet21k_prefers_the_official_names(imagenet21k_dir):
    write(imagenet21k_dir / "train-0", imagenet21k_example([7]))
    assert imagenet.imagenet21k_source(str(imagenet21k_dir)).split("trainval").size == 24


@pytest.mark.parametrize("name", ["validation", "test"])
def test_imagenet21k_files_of_ones_own(imagenet21k_dir, name):
    source = imagenet.imagenet21k_source(str(imagenet21k_dir))
    with pytest.raises(UsageError, match=f"no files for split '{name}' of imagenet21k"):
        source.split(name)
    write(imagenet21k_dir / f"{name}-0", imagenet21k_example([7]))
    source = imagenet.imagenet21k_source(str(imagenet21k_dir))
    assert list(read(source.split(name))[0]["label"]) == labels_of(7)


def test_imagenet21k_examples(tmp_path):
    several = [5, 0, 21842, 17]
    many = list(range(imagenet.MAX_LABELS))
    examples = [imagenet21k_example(labels, png(9)) for labels in (several, [], many)]
    write(tmp_path / "imagenet21k-0", *examples)
    source = imagenet.imagenet21k_source(str(tmp_path))
    split = source.split("eval")
    assert [list(example["label"]) for example in read(split)] == [
        labels_of(*several),
        labels_of(),
        many,
    ]
    assert read(split)[0]["image"] == png(9)
    zero = tf.constant(0, tf.int64)
    assert split.read(zero, zero).element_spec == {
        "image": tf.TensorSpec([], tf.string),
        "label": tf.TensorSpec([imagenet.MAX_LABELS], tf.int64),
    }
    assert source.label_shape == (imagenet.MAX_LABELS,)
    assert source.name == "imagenet21k"
    assert source.num_classes == 21_843
    assert source.class_names[1] == "class 1"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (range(33), r"at most 32 labels, but one has\] \[33\]"),
        ([3, 21843], r"labels must be in 0\.\.\.21842, but are\] \[3 21843\]"),
        ([-1], r"labels must be in 0\.\.\.21842, but are\] \[-1\]"),
    ],
)
def test_imagenet21k_labels_that_cannot_be(tmp_path, labels, message):
    write(tmp_path / "imagenet21k-0", imagenet21k_example(labels))
    split = imagenet.imagenet21k_source(str(tmp_path)).split("eval")
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        read(split)


def test_imagenet21k_errors(tmp_path, imagenet21k_dir):
    with pytest.raises(UsageError, match="unknown split of imagenet21k 'trian'"):
        imagenet.imagenet21k_source(str(imagenet21k_dir)).split("trian")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UsageError,
        match=r"no files imagenet21k\* or train\*: put the TFRecord files of ImageNet-21k",
    ):
        imagenet.imagenet21k_source(str(tmp_path / "empty"))
