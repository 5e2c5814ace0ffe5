"""The pipeline's promises: deterministic, restartable anywhere, complete, padded right."""

import dataclasses
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits

from effnetv2_jax.data import pipeline, preprocess
from effnetv2_jax.data.sources import get_source
from effnetv2_jax.errors import UsageError
from effnetv2_jax.preprocessing import PREPROCESSING
from effnetv2_jax.progressive import Stage

FAMILY = PREPROCESSING["v2"]
PLAIN = pipeline.Augmentation(flip=False, num_layers=0, area_range=(1.0, 1.0))
STRONG = pipeline.Augmentation()


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


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return get_source("digits", str(tmp_path_factory.mktemp("tfds")))


def train(source, stage, *, first_example=0, num_batches=3, seed=0, augmentation=STRONG):
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
        )
    )


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_digits_are_scikit_learns_in_their_order(digits):
    expected = load_digits()
    for split, part in (("train", slice(0, 1437)), ("test", slice(1437, None))):
        examples = list(digits.read(split).as_numpy_iterator())
        assert [e["label"] for e in examples] == list(expected.target[part])
        assert [e["id"] for e in examples] == list(range(len(examples)))
        images = [tf.io.decode_png(e["image"]).numpy()[..., 0] for e in examples]
        np.testing.assert_array_equal(
            np.round(np.stack(images) * (16 / 255)), expected.images[part]
        )
    assert digits.num_classes == 10
    assert digits.num_examples("test") == 360
    assert digits.num_examples("train[:1150]") == 1150


@pytest.mark.parametrize("name", pipeline.AUGMENTATIONS)
def test_every_augmentation_starts_anywhere_and_only_none_leaves_images_alone(digits, name):
    augmentation = dataclasses.replace(PLAIN, name=name, num_layers=2)
    stage = stage_of(batch_size=50)
    batches = train(digits, stage, num_batches=3, augmentation=augmentation)
    later = train(digits, stage, first_example=100, num_batches=1, augmentation=augmentation)
    assert_same(batches[2:], later)
    plain = train(digits, stage, num_batches=3, augmentation=PLAIN)
    same = [
        np.array_equal(image, other)
        for batch, others in zip(batches, plain, strict=True)
        for image, other in zip(batch["image"], others["image"], strict=True)
    ]
    assert all(same) if name == "none" else 0 < sum(same) < len(same) / 2


def test_constants_that_are_not_said_are_the_augmentations_own():
    assert pipeline.Augmentation().constants == {}
    assert pipeline.Augmentation(cutout_const=0.0).constants == {"cutout_const": 0.0}


def test_batches_have_the_promised_shapes_and_dtypes(digits):
    (batch,) = train(digits, stage_of(image_size=20, batch_size=8), num_batches=1)
    assert batch["image"].shape == (8, 20, 20, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].shape == (8,)
    assert batch["label"].dtype == np.int32
    assert batch["mask"].dtype == np.float32
    assert batch["mask"].sum() == 8


def test_the_same_seed_gives_the_same_batches_and_another_does_not(digits):
    first = train(digits, stage_of())
    assert_same(first, train(digits, stage_of()))
    other = train(digits, stage_of(), seed=1)
    assert any((a["label"] != b["label"]).any() for a, b in zip(first, other, strict=True))


def test_starting_anywhere_continues_the_uninterrupted_run(digits):
    """Also across the border of an epoch, which 1,437 images make inside batch 14."""
    whole = train(digits, stage_of(), num_batches=18)
    for start in (1, 14, 15):
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
    mild, strong = (
        train(digits, stage_of(batch_size=1437, magnitude=m), num_batches=2) for m in (5.0, 15.0)
    )
    order = [np.argsort(batch["label"], kind="stable") for batch in mild]
    assert (mild[0]["image"][order[0]] != mild[1]["image"][order[1]]).any()
    assert (mild[0]["image"] != strong[0]["image"]).any()
    np.testing.assert_array_equal(mild[0]["label"], strong[0]["label"])


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
        split: next(source.read(split).as_numpy_iterator())["image"] for split in ("train", "test")
    }
    again = next(source.read("train").as_numpy_iterator())["image"]
    np.testing.assert_array_equal(first["train"], again)
    assert (first["train"] != first["test"]).any()
    assert source.num_classes == 1000


@pytest.mark.parametrize("form", ["JPEG", "PNG", "grey PNG", "raw"])
def test_decode_gives_three_channels(form):
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    if form == "raw":
        decoded = preprocess.decode(tf.constant(pixels))
    else:
        image = Image.fromarray(pixels).convert("L" if "grey" in form else "RGB")
        file = io.BytesIO()
        image.save(file, form.split()[-1], quality=100)
        decoded = preprocess.decode(tf.constant(file.getvalue()))
        expected = np.asarray(image.convert("RGB"), np.int32)
        assert np.abs(decoded.numpy().astype(np.int32) - expected).max() <= (
            12 if form == "JPEG" else 0
        )
    assert decoded.shape == (5, 7, 3)
    assert decoded.dtype == tf.uint8


@pytest.mark.parametrize(("method", "name"), [("bilinear", "BILINEAR"), ("bicubic", "BICUBIC")])
def test_enlarging_is_pillows(method, name):
    """Pillow antialiases when it shrinks, and clips twice: only this can be compared."""
    pixels = np.random.default_rng(0).integers(80, 176, (9, 13, 3)).astype(np.uint8)
    ours = preprocess.resize(tf.constant(pixels), 40, method).numpy().astype(int)
    theirs = np.asarray(Image.fromarray(pixels).resize((40, 40), Image.Resampling[name]), int)
    # At the border, which is two source pixels wide in bicubic, the two differ.
    interior = (slice(10, -10), slice(10, -10))
    assert np.abs(ours - theirs)[interior].max() <= 1


def test_center_crop_is_the_published_one():
    image = tf.reshape(tf.range(100 * 140 * 3, dtype=tf.int32), (100, 140, 3))
    cropped = preprocess.center_crop(image, 224).numpy()
    side = int(100 * 224 / 256)
    top, left = (100 - side) // 2, (140 - side) // 2
    np.testing.assert_array_equal(cropped, image[top : top + side, left : left + side])
    assert preprocess.center_crop(image[:1, :1], 32).shape == (1, 1, 3)


def test_random_crops_stay_in_their_ranges():
    rows, columns = tf.meshgrid(tf.range(120), tf.range(160), indexing="ij")
    image = tf.cast(tf.stack([rows, columns, rows], -1), tf.uint8)
    areas, ratios = [], []
    for i in range(200):
        height, width = preprocess.random_crop(
            image, (0, i), area_range=(0.2, 0.6), aspect_ratio_range=(0.75, 1.33),
            min_object_covered=0.0,
        ).shape[:2]  # fmt: skip
        areas.append(height * width / (120 * 160))
        ratios.append(width / height)
    assert 0.18 < min(areas) < 0.3 and 0.5 < max(areas) < 0.62
    assert 0.72 < min(ratios) < 0.85 and 1.2 < max(ratios) < 1.37


def test_bad_values_are_named(digits, tmp_path):
    with pytest.raises(UsageError, match="unknown data set 'digit': did you mean digits"):
        get_source("digit")
    with pytest.raises(UsageError, match="unknown split 'validation' of digits: allowed are"):
        digits.num_examples("validation")
    with pytest.raises(UsageError, match=r"at most the 1437 examples .* got 2000"):
        train(digits, stage_of(batch_size=2000))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match=r"data_dir .* cannot be written"):
        get_source("digits", str(file))
