"""TFDS's data sets: what is the image and the label, which splits, and both ways of reading."""

import io
import threading

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from effnetv2_jax.data.sources import MAX_LABELS, tfds_splits
from effnetv2_jax.data.sources.digits import Digits
from effnetv2_jax.data.sources.tfds import TfdsDataset, open_tfds, tfds_source
from effnetv2_jax.runtime.errors import UsageError

NAMED = {
    # name: (TFDS's name, classes, TFDS's splits)
    "cifar10": ("cifar10", 10, {"train": 50_000, "test": 10_000}),
    "cifar100": ("cifar100", 100, {"train": 50_000, "test": 10_000}),
    "oxford_flowers102": (
        "oxford_flowers102",
        102,
        {"train": 1020, "test": 6149, "validation": 1020},
    ),
    "cars196": ("cars196", 196, {"train": 8144, "test": 8041}),
    "tf_flowers": ("tf_flowers", 5, {"train": 3670}),
    "imagenet_v2": ("imagenet_v2/matched-frequency", 1000, {"test": 10_000}),
    "imagenet2012": (
        "imagenet2012",
        1000,
        {"train": 1_281_167, "validation": 50_000, "test": 100_000},
    ),
    "imagenet2012_real": ("imagenet2012_real", 1000, {"validation": 50_000}),
    "tfds:mnist": ("mnist", 10, {"train": 60_000, "test": 10_000}),
    "tfds:imagenet_v2/threshold-0.7:3.0.0": ("imagenet_v2/threshold-0.7", 1000, {"test": 10_000}),
}
REAL_LABELS = [[], [7], [1, 2, 3], [9, 0], []]


def pretend(tfds_name, data_dir, splits):
    """Writes what TFDS keeps about a prepared data set, without its examples."""
    builder = tfds.builder(tfds_name, data_dir=str(data_dir))
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[size],
            num_bytes=1000,
            filename_template=tfds.core.ShardedFileTemplate(
                dataset_name=builder.name,
                data_dir=builder.data_path,
                split=split,
                filetype_suffix="tfrecord",
            ),
        )
        for split, size in splits.items()
    ]
    builder.data_path.mkdir(parents=True)
    builder.info.set_splits(tfds.core.SplitDict(infos))
    builder.info.write_to_directory(builder.data_path)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def few_labels(builder, split, decoders=None, **kwargs):
    """Examples of imagenet2012_real as they are; the mock's own have up to 49 labels."""
    del split, decoders, kwargs
    examples = [
        {
            "image": png(np.full((5, 4, 3), index, np.uint8)),
            "file_name": f"{index}",
            "original_label": index,
            "real_label": labels,
        }
        for index, labels in enumerate(REAL_LABELS)
    ]
    info = builder.info.features.get_serialized_info()
    return tf.data.Dataset.from_generator(
        lambda: iter(examples),
        output_signature={
            key: tf.TensorSpec(value.shape, tf.as_dtype(value.dtype)) for key, value in info.items()
        },
    )


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
    data_dir = str(tmp_path_factory.mktemp("tfds"))
    Digits(data_dir=data_dir).download_and_prepare()
    return data_dir


@pytest.fixture
def digits(digits_dir):
    return tfds_source("digits", Digits(data_dir=digits_dir))


@pytest.fixture
def set_memory_limit(tmp_path, monkeypatch):
    """A function that sets the limit; what is larger has its index in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return lambda limit: monkeypatch.setattr(tfds_splits, "MEMORY_LIMIT", limit)


def rows(split, first=0, count=None):
    return list(split.read(first, split.size if count is None else count).as_numpy_iterator())


def assert_same(examples, others):
    for example, other in zip(examples, others, strict=True):
        assert example["image"] == other["image"]
        np.testing.assert_array_equal(example["label"], other["label"])


@pytest.mark.parametrize("name", NAMED)
def test_every_named_data_set_gives_images_and_labels(name, tmp_path):
    tfds_name, num_classes, splits = NAMED[name]
    several = name == "imagenet2012_real"
    sizes = dict.fromkeys(splits, 5)
    if name == "imagenet2012":  # Its train is what is left of TFDS's without minival.
        sizes["train"] += 25_021
    pretend(tfds_name, tmp_path, sizes)
    with tfds.testing.mock_data(
        5, data_dir=str(tmp_path), as_dataset_fn=few_labels if several else None
    ):
        source = open_tfds(name, None)
        examples = [example for split in splits for example in rows(source.split(split))]
    assert (source.name, source.num_classes) == (name, num_classes)
    assert len(examples) == 5 * len(splits)
    for example in examples:
        channels = 1 if "mnist" in name else 3
        assert tf.io.decode_image(example["image"]).shape[-1] == channels
        assert example["label"].dtype == np.int64
        assert example["label"].shape == source.label_shape == ((MAX_LABELS,) if several else ())
        assert (example["label"] >= (-1 if several else 0)).all()
        assert (example["label"] < num_classes).all()
    assert len({example["label"].tobytes() for example in examples}) > 1


def test_class_names_are_the_label_features(tmp_path):
    for name, first in (("imagenet2012", "n01440764"), ("tf_flowers", "dandelion")):
        pretend(NAMED[name][0], tmp_path, {"train": 5})
        assert open_tfds(name, str(tmp_path)).class_names[0] == first


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("oxford_flowers102", {"train": 1020, "trainval": 2040, "trainval+test": 8189}),
        (
            "imagenet2012",
            {
                "train": 1_256_146,
                "minival": 25_021,
                "trainval": 1_281_167,
                "eval": 50_000,
                "eval[:10%]": 5000,
                "minival + eval": 75_021,
                "trainval[:1000]": 1000,
            },
        ),
        ("imagenet2012_real", {"eval": 50_000, "validation": 50_000}),
        ("tf_flowers", {"train[:90%]": 3303, "train[90%:]": 367}),
        ("tfds:mnist", {"all": 70_000}),
    ],
)
def test_splits_have_their_customary_names(name, sizes, tmp_path):
    pretend(NAMED[name][0], tmp_path, NAMED[name][2])
    source = open_tfds(name, str(tmp_path))
    assert {split: source.split(split).size for split in sizes} == sizes


def test_a_slice_of_a_split_that_is_a_slice_is_refused_not_misread(tmp_path):
    pretend("imagenet2012", tmp_path, NAMED["imagenet2012"][2])
    source = open_tfds("imagenet2012", str(tmp_path))
    with pytest.raises(
        UsageError,
        match=r"no slice 'train\[:80%\]' of imagenet2012, where train means train\[25021:\]: "
        r"allowed are slices of validation, test, trainval, eval$",
    ):
        source.split("train[:80%]")


@pytest.mark.parametrize(
    ("name", "label", "num_classes"),
    [
        ("oxford_iiit_pet", "label", 37),
        ("caltech_birds2011", "label", 200),
        ("coil100", "angle_label", 72),
        ("geirhos_conflict_stimuli", "shape_label", 16),
        ("smallnorb", "label_category", 5),
        ("wake_vision", "person", 2),
    ],
)
def test_the_image_and_the_label_are_the_pair_that_tfds_names(
    name, label, num_classes, tmp_path, monkeypatch
):
    """Files that TFDS writes with the features of its own builder, and reads as (image, label)."""
    builder = tfds.builder(name, data_dir=str(tmp_path))
    features, rng = builder.info.features, np.random.default_rng(0)
    values = {
        tfds.features.Image: lambda x: rng.integers(
            0, 256, [side or 4 for side in x.shape], np.uint8
        ),
        tfds.features.ClassLabel: lambda x: rng.integers(x.num_classes),
        tfds.features.Sequence: lambda x: [],
        tfds.features.Text: lambda x: "text",
        tfds.features.BBoxFeature: lambda x: tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
        tfds.features.Tensor: lambda x: np.zeros(x.shape, x.np_dtype),
    }
    examples = [
        (i, {key: values[type(feature)](feature) for key, feature in features.items()})
        for i in range(6)
    ]
    monkeypatch.setattr(type(builder), "_split_generators", lambda *args: {"train": iter(examples)})
    builder.download_and_prepare()
    source = open_tfds(f"tfds:{name}", str(tmp_path))
    assert source.num_classes == num_classes
    assert source.class_names == tuple(features[label].names)
    pairs = list(builder.as_dataset(split="train", as_supervised=True).as_numpy_iterator())
    ours = rows(source.split("train"))
    assert [example["label"] for example in ours] == [label for _, label in pairs]
    assert len({label for _, label in pairs}) > 1
    for example, (image, _) in zip(ours, pairs, strict=True):
        np.testing.assert_array_equal(tf.io.decode_image(example["image"]), image)


def test_a_pair_without_a_class_is_no_classification(tmp_path):
    pretend("symmetric_solids", tmp_path, {"train": 5})
    with pytest.raises(UsageError, match=r"\(its own are \('image', 'rotation'\)\)"):
        open_tfds("tfds:symmetric_solids", str(tmp_path))


def test_a_folder_without_data_is_named(tmp_path):
    builder = tfds.builder("cifar10", data_dir=str(tmp_path))
    builder.data_path.mkdir(parents=True)
    with pytest.raises(UsageError, match=rf"the folder '{builder.data_path}' of .* holds no data"):
        open_tfds("cifar10", str(tmp_path)).split("train")


def test_a_missing_file_is_named(tmp_path):
    Digits(data_dir=str(tmp_path)).download_and_prepare()
    (file,) = tmp_path.rglob("*train.tfrecord*")
    file.unlink()
    split = tfds_source("digits", Digits(data_dir=str(tmp_path))).split("train")
    with pytest.raises(UsageError, match=rf"cannot be read \({file}; No such file or directory\)"):
        split.parse(0)


class RealLabels(tfds.core.GeneratorBasedBuilder):
    """Five images with ReaL's features, or one with too many labels."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="few"), tfds.core.BuilderConfig(name="many")]

    def _info(self):
        names = [f"class {i}" for i in range(100)]
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "original_label": tfds.features.ClassLabel(names=names),
            "real_label": tfds.features.Sequence(tfds.features.ClassLabel(names=names)),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"validation": self._generate_examples()}

    def _generate_examples(self):
        few = self.builder_config.name == "few"
        for index, labels in enumerate(REAL_LABELS if few else [[1] * (MAX_LABELS + 1)]):
            image = np.full((2, 2, 3), index, np.uint8)
            yield index, {"image": image, "original_label": 5, "real_label": labels}


@pytest.mark.parametrize("memory_limit", [1 << 20, 1])
def test_several_labels_and_none_are_filled_up(memory_limit, tmp_path, set_memory_limit):
    set_memory_limit(memory_limit)

    def open_(config):
        builder = RealLabels(config=config, data_dir=str(tmp_path))
        dataset = TfdsDataset("real", label="real_label")
        return tfds_source("real", builder, dataset).split("validation")

    for example, labels in zip(rows(open_("few")), REAL_LABELS, strict=True):
        assert example["label"].tolist() == labels + [-1] * (MAX_LABELS - len(labels))
    with pytest.raises(tf.errors.InvalidArgumentError, match="at most 32 labels, but one has"):
        rows(open_("many"))


@pytest.mark.parametrize("spec", ["train", "train[10%:20%]", "train[1400:]+test[:5]"])
def test_memory_and_files_give_the_same_examples(digits, set_memory_limit, spec):
    memory = digits.split(spec)
    set_memory_limit(1)
    files = digits.split(spec)
    assert memory.random_access and not files.random_access
    assert memory.size == files.size
    assert_same(rows(memory), rows(files))
    middle = memory.size // 2
    assert_same(rows(memory, middle, 3), rows(files, middle, 3))
    assert "digits" in memory.describe(0) and "record" in files.describe(0)


def test_slices_and_sums_are_tfds_own(digits, digits_dir):
    builder = Digits(data_dir=digits_dir)
    for spec in ("train[10%:20%]", "test+train[:3]"):
        expected = [
            int(example["label"]) for example in builder.as_dataset(split=spec).as_numpy_iterator()
        ]
        assert [int(example["label"]) for example in rows(digits.split(spec))] == expected


def test_a_slice_counts_its_share_of_the_bytes(digits, digits_dir, set_memory_limit):
    set_memory_limit(Digits(data_dir=digits_dir).info.splits["train"].num_bytes // 2)
    assert not digits.split("train").random_access
    assert not digits.split("train[:60%]").random_access
    assert digits.split("train[:40%]").random_access


def test_examples_are_read_once_at_the_first_get_also_inside_a_map_and_by_threads(
    digits, monkeypatch
):
    reads = []
    splits = tfds_splits.TfdsSplits
    read_all = splits._read_all
    monkeypatch.setattr(splits, "_read_all", lambda *args: reads.append(1) or read_all(*args))
    split = digits.split("test")
    assert reads == []
    order = tf.constant([5, 0, 359], tf.int64)
    datasets = []

    def read():
        datasets.append(tf.data.Dataset.from_tensor_slices(order).map(split.parse))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = rows(split)
    assert len(datasets) == 4
    for dataset in datasets:
        expected = [everything[i] for i in order.numpy()]
        assert_same(list(dataset.as_numpy_iterator()), expected)
    assert reads == [1]


@pytest.mark.parametrize(
    "spec", ["validation", "train[:300%]", "all[:5]", "", "train+", "train[a]"]
)
def test_an_unknown_split_is_refused(digits, spec):
    with pytest.raises(
        UsageError, match=r"unknown split '.*' of digits: allowed are train, test, "
    ):
        digits.split(spec)


@pytest.mark.parametrize("spec", ["train[5:5]", "train[10:5]", "test+train[10:5]"])
def test_an_empty_split_is_refused(digits, spec):
    with pytest.raises(UsageError, match="of digits has no examples"):
        digits.split(spec)


def test_a_large_split_must_be_one_row_of_records(digits, set_memory_limit, monkeypatch):
    set_memory_limit(1)
    with pytest.raises(UsageError, match="too large for memory and not one row of records"):
        digits.split("train[:5]+test")
    array_record = tfds.core.FileFormat.ARRAY_RECORD
    monkeypatch.setattr(tfds.core.DatasetInfo, "file_format", array_record)
    with pytest.raises(UsageError, match="not in TFRecord files but in array_record"):
        digits.split("train")


def test_fewer_examples_than_promised_are_refused(tmp_path):
    pretend("cifar10", tmp_path, {"train": 6})
    with tfds.testing.mock_data(5, data_dir=str(tmp_path)):
        split = open_tfds("cifar10", None).split("train")
        with pytest.raises(UsageError, match=r"should have 6 examples, but .* has 5: remove"):
            split.parse(0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tfds:cifar11", "unknown data set 'tfds:cifar11': did you mean tfds:cifar1"),
        ("tfds:", "unknown data set 'tfds:': allowed are tfds: and a name from https"),
        ("tfds:kaggle:x", "unknown data set 'tfds:kaggle:x': .*allowed are"),
        ("tfds:cifar10/foo", "'tfds:cifar10/foo' cannot be opened: .*BuilderConfig foo not found"),
        ("tfds:cifar10:9.9.9", "cannot be opened: .* cannot be loaded at version 9.9.9"),
    ],
)
def test_an_unknown_data_set_is_refused_in_few_words(name, message, tmp_path):
    with pytest.raises(UsageError, match=message) as refused:
        open_tfds(name, str(tmp_path))
    assert len(str(refused.value)) < 450 and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("tfds_name", "features"),
    [
        ("coco", r"image \(Image\), .*objects \(Sequence\)"),
        ("div2k", r"hr \(Image\), lr \(Image\)"),
        ("ag_news_subset", r"description \(Text\), label \(ClassLabel\), title \(Text\)"),
        ("imagenet2012_real", ""),
    ],
)
def test_only_classification_is_accepted(tfds_name, features, tmp_path):
    with tfds.testing.mock_data(data_dir=str(tmp_path)):
        builder = tfds.builder(tfds_name)
        builder.data_path.mkdir(parents=True)
        if tfds_name == "imagenet2012_real":  # It has one of each, but for ReaL's own label.
            assert tfds_source("real", builder).num_classes == 1000
            return
        with pytest.raises(
            UsageError, match=f"not a data set for classification: it has features .*{features}"
        ):
            tfds_source(tfds_name, builder)


def test_what_has_to_be_fetched_by_hand_says_how(tmp_path):
    with pytest.raises(
        UsageError,
        match=rf"imagenet2012 is not in data_dir '{tmp_path}' .* into {tmp_path}/downloads/manual "
        r".*ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.*"
        rf"`tfds build imagenet2012 --data_dir={tmp_path}`, use `python -m launch.prepare_imagenet`"
        ", or point data.dir at the official",
    ) as refused:
        open_tfds("imagenet2012", str(tmp_path))
    assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match=r"ILSVRC2012_img_val.tar.*`tfds build imagenet2012_real"):
        open_tfds("imagenet2012_real", str(tmp_path))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no network"),
        OSError("Not enough disk space"),
        tfds.download.DownloadError("Failed to get url"),
        AssertionError("manual directory"),
        ImportError("No module named 'scipy'"),
    ],
)
def test_what_cannot_be_downloaded_says_what_to_do(error, tmp_path, monkeypatch):
    def fail(self):
        raise error

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(
        UsageError,
        match=rf"cifar10 is not in data_dir '{tmp_path}' and cannot be prepared here "
        rf"\({type(error).__name__}: .*\): prepare it once with `tfds build cifar10 --data_dir=",
    ):
        open_tfds("cifar10", str(tmp_path))


def test_a_data_dir_that_cannot_be_written_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match=r"data_dir .*file' cannot be written: "):
        tfds_source("digits", Digits(data_dir=str(file)))
