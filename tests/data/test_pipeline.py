"""The pipeline's promises: deterministic, restartable anywhere, complete, padded right."""

import dataclasses
import io
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits

from effnetv2_jax.data import images, pipeline
from effnetv2_jax.data.order import WINDOW
from effnetv2_jax.data.sources import Source, Split, tfds_splits
from effnetv2_jax.data.sources.digits import Digits
from effnetv2_jax.data.sources.registry import get_source
from effnetv2_jax.data.sources.tfds import tfds_source
from effnetv2_jax.data.sources.tfrecords import build_index, open_split
from effnetv2_jax.preprocessing import PREPROCESSING
from effnetv2_jax.progressive import Stage
from effnetv2_jax.runtime.errors import UsageError

FAMILY = PREPROCESSING["v2"]
PLAIN = images.Augmentation("none", flip=False, area_range=(1.0, 1.0))
# Compiling RandAugment takes seconds: where it does not matter, tests do without.
CROPPED = images.Augmentation(name="none")
STRONG = images.Augmentation()


def stage_of(image_size=16, batch_size=100, magnitude=10.0):
    return Stage(
        index=0,
        first_step=0,
        end_step=1000,
        image_size=image_size,
        randaugment_magnitude=magnitude,
        mixup_alpha=0.0,
        cutmix_alpha=0.0,
        dropout_rate=0.0,
        batch_size=batch_size,
    )


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache for the indices of records that is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def digits(data_dir):
    return get_source("digits", data_dir)


@pytest.fixture(scope="module")
def whole(digits):
    """The first batches of a run on digits, past the border of an epoch inside batch 14."""
    return train(digits, stage_of(), num_batches=18)


def train(
    source, stage, *, first_example=0, num_batches=3, seed=0, augmentation=CROPPED, **keywords
):
    return list(
        pipeline.train_batches(
            source,
            "train",
            stage,
            first_example=first_example,
            num_batches=num_batches,
            seed=seed,
            preprocessing=FAMILY,
            augmentation=augmentation,
            **keywords,
        )
    )


def read_all(split):
    bounds = (tf.constant(x, tf.int64) for x in (0, split.size))
    return list(split.read(*bounds).as_numpy_iterator())


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_digits_are_scikit_learns_in_their_order(digits):
    expected = load_digits()
    for split, part in (("train", slice(0, 1437)), ("test", slice(1437, None))):
        examples = read_all(digits.split(split))
        assert [e["label"] for e in examples] == list(expected.target[part])
        images = [tf.io.decode_png(e["image"]).numpy()[..., 0] for e in examples]
        np.testing.assert_array_equal(
            np.round(np.stack(images) * (16 / 255)), expected.images[part]
        )
    assert digits.num_classes == 10
    assert digits.split("test").size == 360
    assert digits.split("train[:1150]").size == 1150


@pytest.fixture(scope="module")
def plain(digits):
    return train(digits, stage_of(), num_batches=2, augmentation=PLAIN)


@pytest.mark.parametrize("name", images.AUGMENTATIONS)
def test_every_augmentation_changes_images_and_only_none_leaves_them_alone(digits, plain, name):
    augmentation = dataclasses.replace(PLAIN, name=name, num_layers=2)
    batches = train(digits, stage_of(), num_batches=2, augmentation=augmentation)
    same = [
        np.array_equal(image, other)
        for batch, others in zip(batches, plain, strict=True)
        for image, other in zip(batch["image"], others["image"], strict=True)
    ]
    assert all(same) if name == "none" else sum(same) < len(same) / 2
    # Every one draws from the same seeds, so one of them shows that it may start anywhere.
    if name == "cutout":
        later = train(
            digits, stage_of(), first_example=100, num_batches=1, augmentation=augmentation
        )
        assert_same(batches[1:], later)


def test_constants_that_are_not_said_are_the_augmentations_own():
    assert images.Augmentation().constants == {}
    assert images.Augmentation(cutout_const=0.0).constants == {"cutout_const": 0.0}


def test_batches_have_the_promised_shapes_and_dtypes(digits):
    (batch,) = train(digits, stage_of(image_size=20, batch_size=8), num_batches=1)
    assert batch["image"].shape == (8, 20, 20, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].shape == (8,)
    assert batch["label"].dtype == np.int32
    assert batch["mask"].dtype == np.float32
    assert batch["mask"].sum() == 8
    assert batch["index"].dtype == np.int32
    np.testing.assert_array_equal(batch["index"], np.arange(8))


def test_the_same_seed_gives_the_same_batches_and_another_does_not(digits, whole):
    first = train(digits, stage_of())
    assert_same(first, whole[:3])
    other = train(digits, stage_of(), seed=1)
    assert any((a["label"] != b["label"]).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("start", [14, 15])
def test_starting_anywhere_continues_the_uninterrupted_run(digits, whole, start):
    part = train(digits, stage_of(), first_example=start * 100, num_batches=18 - start)
    assert_same(part, whole[start:])


def test_an_epoch_has_every_example_once_in_another_order_each_time(digits):
    batches = train(digits, stage_of(batch_size=1437), num_batches=2, augmentation=PLAIN)
    first, second = (sorted(image.tobytes() for image in batch["image"]) for batch in batches)
    assert first == second  # the same images …
    assert (batches[0]["label"] != batches[1]["label"]).any()  # … in another order
    plain = sorted(load_digits().target[:1437])
    assert sorted(batches[0]["label"]) == plain


def test_augmentation_differs_from_epoch_to_epoch_and_grows_with_the_magnitude(digits):
    stages = [stage_of(batch_size=1437, magnitude=magnitude) for magnitude in (5.0, 15.0)]
    mild = train(digits, stages[0], num_batches=2, augmentation=STRONG)
    (strong,) = train(digits, stages[1], num_batches=1, augmentation=STRONG)
    order = [np.argsort(batch["label"], kind="stable") for batch in mild]
    assert (mild[0]["image"][order[0]] != mild[1]["image"][order[1]]).any()
    assert (mild[0]["image"] != strong["image"]).any()
    np.testing.assert_array_equal(mild[0]["label"], strong["label"])


def test_evaluation_has_every_example_once_and_pads_the_last_batch(digits):
    batches = list(
        pipeline.eval_batches(digits, "test", image_size=12, batch_size=64, preprocessing=FAMILY)
    )
    assert all(batch["image"].shape == (64, 12, 12, 3) for batch in batches)
    masks = np.concatenate([batch["mask"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])
    assert masks.sum() == 360
    assert masks[:360].all()
    np.testing.assert_array_equal(labels[:360], load_digits().target[1437:])


def test_synthetic_splits_are_fixed_and_apart():
    source = get_source("synthetic")
    first = {
        split: source.split(split).parse(tf.constant(0, tf.int64))["image"].numpy()
        for split in ("train", "test")
    }
    again = source.split("train").parse(tf.constant(0, tf.int64))["image"].numpy()
    np.testing.assert_array_equal(first["train"], again)
    assert (first["train"] != first["test"]).any()
    assert source.num_classes == 1000


@pytest.fixture(scope="module")
def records_file(tmp_path_factory):
    """A file of a window of 4,096 examples and a tail, of which record 7 is cut off."""
    file = str(tmp_path_factory.mktemp("records") / "train.tfrecord")
    pngs = [tf.io.encode_png(np.full((4, 4, 3), i, np.uint8)).numpy() for i in range(256)]
    with tf.io.TFRecordWriter(file) as writer:
        for i in range(WINDOW + 9):
            writer.write(pngs[i % 256][:20] if i == 7 else pngs[i % 256])
    return file


def records_source(file):
    def parse(record):
        return {"image": record, "label": tf.strings.to_hash_bucket_fast(record, 1000)}

    split = open_split([file], parse)
    return Source("records", tuple(map(str, range(1000))), lambda name: split)


@pytest.fixture(scope="module")
def records(records_file):
    return records_source(records_file)


def joined(shares):
    """What several processes read, put together as one process reads it."""
    return [
        {name: np.stack([part[name] for part in parts], 1).reshape(-1, *parts[0][name].shape[1:])
         for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "count"), [("digits", 4), ("records", 2)])
def test_processes_share_the_batches_of_one(request, name, count):
    """Across the border of an epoch. Each example has its number in the batch of one process."""
    source = request.getfixturevalue(name)
    stage, size = stage_of(batch_size=400, image_size=4), source.split("train").size
    first_example = (size - 500) // 400 * 400
    one, *shares = [
        train(
            source,
            stage,
            first_example=first_example,
            num_batches=2,
            share=pipeline.Share(index, n),
        )
        for n in (1, count)
        for index in range(n)
    ]
    assert_same(one, joined(shares))
    if name == "records":
        assert any((batch["mask"] == 0).any() for batch in one)  # record 7


def test_threads_do_not_matter(records):
    stage = stage_of(batch_size=300, image_size=8)
    one, three = (
        train(records, stage, share=pipeline.Share(threads=threads)) for threads in (1, 3)
    )
    assert_same(one, three)


def test_a_bad_example_keeps_its_place_is_named_and_counted_once(records, caplog):
    stage, size = stage_of(batch_size=241, image_size=4), WINDOW + 9  # 17 batches an epoch, + 8
    with caplog.at_level("WARNING"):
        batches = train(records, stage, num_batches=36)
    masks = np.concatenate([batch["mask"] for batch in batches])
    (bad, again, *_) = np.flatnonzero(masks == 0)
    assert bad < size <= again < 2 * size
    images = np.concatenate([batch["image"] for batch in batches])
    assert not images[masks == 0].any()
    (message,) = [r.message for r in caplog.records if "cannot be decoded" in r.message]
    assert "train.tfrecord, record 7 (" in message
    assert "PNG" in message  # TensorFlow's reason
    # Those after it are where they would have been: all of them, once an epoch.
    assert masks[:size].sum() == size - 1


def encoded(form):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(noise).save(file, form)
    return file.getvalue()


def test_damage_of_any_kind_masks_one_example(tmp_path):
    """Undecodable content, a file that cannot be read, and nothing of their neighbours."""
    good = [encoded(form) for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF")]
    bad = [content[: len(content) // 3] for content in good]
    bad[1] = bad[1][:50]  # a longer part of a PNG is decoded as far as it goes
    contents = [b"", b"text", *[x for pair in zip(good, bad, strict=True) for x in pair]]
    files = [str(tmp_path / str(i)) for i in range(len(contents) + 1)]
    for file, content in zip(files, contents, strict=False):  # the last one does not exist
        pathlib.Path(file).write_bytes(content)
    paths = tf.constant(files)

    def get(index):
        return {"image": tf.io.read_file(tf.gather(paths, index)), "label": index + 5}

    source = Source("files", ("a",), lambda name: Split.of_examples(len(files), get))
    (batch,) = pipeline.eval_batches(
        source, "all", image_size=9, batch_size=14, preprocessing=FAMILY, max_bad_fraction=1.0
    )
    assert batch["mask"].tolist() == [0, 0] + [1, 0] * 5 + [0, 0]
    assert (batch["label"] == batch["mask"] * np.arange(5, 19)).all()
    np.testing.assert_array_equal(batch["image"].any((1, 2, 3)), batch["mask"])
    alone = images.eval_image(tf.constant(good[0]), 9, FAMILY)
    np.testing.assert_array_equal(batch["image"][2], alone)


def test_a_record_with_a_wrong_checksum_masks_one_example(records_file, tmp_path):
    content = bytearray(pathlib.Path(records_file).read_bytes())
    number = WINDOW // 2
    index = build_index([records_file])
    content[index.positions[number + 1] - 1] ^= 1
    damaged = tmp_path / "damaged.tfrecord"
    damaged.write_bytes(content)
    source = records_source(str(damaged))
    epoch = train(source, stage_of(batch_size=821, image_size=4), num_batches=5)
    assert sum((batch["mask"] == 0).sum() for batch in epoch) == 2  # with record 7
    evaluated = pipeline.eval_batches(
        source, "train", image_size=4, batch_size=500, preprocessing=FAMILY
    )
    masks = np.concatenate([batch["mask"] for batch in evaluated])[: WINDOW + 9]
    assert np.flatnonzero(masks == 0).tolist() == [7, number]


def test_splits_in_memory_and_in_files_give_the_same_evaluation(digits, data_dir, monkeypatch):
    digits.split("test")
    monkeypatch.setattr(tfds_splits, "MEMORY_LIMIT", 1)
    in_files = tfds_source("digits", Digits(data_dir=data_dir))
    both = [
        list(pipeline.eval_batches(x, "test", image_size=8, batch_size=90, preprocessing=FAMILY))
        for x in (digits, in_files)
    ]
    assert_same(*both)


def test_too_many_bad_examples_end_the_run(records):
    with pytest.raises(UsageError, match=r"1 of the 4105 examples .* record 7.* allows 0, here 0"):
        train(records, stage_of(batch_size=4096, image_size=4), max_bad_fraction=0.0)


@pytest.mark.parametrize(
    ("size", "num_bad", "fraction", "ends"),
    [
        (217, 5, 0.001, False),
        (217, 6, 0.001, True),
        (217, 1, 0.0, True),
        (217, 6, 0.03, False),
        (6, 3, 0.001, False),
        (6, 4, 0.001, True),
        (1, 1, 0.001, True),
    ],
)
def test_a_few_bad_examples_do_not_end_a_run_on_a_small_split(size, num_bad, fraction, ends):
    split = Split.of_examples(size, lambda i: {"image": tf.constant(b"text"), "label": i})
    bad = pipeline._BadExamples(Source("few", ("a",), lambda name: split), "all", fraction)
    bad.add(range(num_bad - 1))
    if ends:
        with pytest.raises(UsageError, match=rf"{num_bad} of the {size} .* {num_bad - 1}: mend"):
            bad.add([num_bad - 1])
    else:
        bad.add([num_bad - 1])


def test_a_split_without_images_is_refused_at_once():
    split = Split.of_examples(10**9, lambda i: {"image": tf.constant(b"text"), "label": i})
    source = Source("letters", ("a",), lambda name: split)
    with pytest.raises(
        UsageError,
        match=r"first 8 examples of .* letters .*'example \d+' \(it is no image",
    ):
        train(source, stage_of(), max_bad_fraction=0.0)


@pytest.mark.parametrize("name", ["digits", "records"])
def test_evaluation_is_shared_by_processes(request, name):
    source, count = request.getfixturevalue(name), 3
    shares = [
        list(
            pipeline.eval_batches(
                source, "train", image_size=4, batch_size=300, preprocessing=FAMILY,
                share=pipeline.Share(index, count),
            )
        )
        for index in range(count)
    ]  # fmt: skip
    assert len({len(share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    assert all(len(batch["mask"]) == 300 // count for batch in batches)
    masks = np.concatenate([batch["mask"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])[masks > 0]
    examples = read_all(source.split("train"))
    expected = [e["label"] for i, e in enumerate(examples) if name == "digits" or i != 7]
    np.testing.assert_array_equal(labels, expected)


def test_bad_values_are_named(digits, tmp_path):
    with pytest.raises(UsageError, match="unknown data set 'digit': did you mean digits"):
        get_source("digit")
    with pytest.raises(UsageError, match="unknown data set 'cifar': did you mean cifar10"):
        get_source("cifar")
    with pytest.raises(UsageError, match="unknown split 'validation' of digits: allowed are"):
        digits.split("validation")
    with pytest.raises(UsageError, match=r"at most the 1437 examples .* got 2000"):
        train(digits, stage_of(batch_size=2000))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match=r"batch_size must be .* processes \(8\), got 100"):
        train(digits, stage_of(), share=pipeline.Share(0, 8))
    with pytest.raises(UsageError, match="number of processes must divide 64, got 3"):
        train(digits, stage_of(), share=pipeline.Share(0, 3))
    with pytest.raises(UsageError, match=r"data_dir .* cannot be written"):
        get_source("digits", str(file))
