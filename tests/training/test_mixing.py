"""Mixup and CutMix, against what their definitions say of the result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effnetv2_jax.training.mixing import cutmix, mix, mixup

BATCH, SIZE, CLASSES = 64, 24, 5


@pytest.fixture(scope="module")
def batch():
    """Image i is constant i, so that every pixel says where it is from."""
    images = jnp.broadcast_to(jnp.arange(BATCH, dtype=jnp.float32)[:, None, None, None],
                              (BATCH, SIZE, SIZE, 3))  # fmt: skip
    targets = jax.nn.one_hot(jnp.arange(BATCH) % CLASSES, CLASSES)
    return images, targets


def test_alpha_0_changes_nothing(batch):
    for mixed in (
        mixup(*batch, 0.0, jax.random.key(0)),
        cutmix(*batch, 0.0, jax.random.key(0)),
        mix(*batch, 0.0, 0.0, jax.random.key(0)),
    ):
        np.testing.assert_array_equal(mixed[0], batch[0])
        np.testing.assert_array_equal(mixed[1], batch[1])


def test_mixup_weighs_image_and_target_alike_and_keeps_the_larger_share(batch):
    images, targets = mixup(*batch, 0.5, jax.random.key(1))
    own, other = np.arange(BATCH), np.arange(BATCH)[::-1]
    weight = (np.asarray(images)[:, 0, 0, 0] - other) / (own - other)
    assert weight.min() >= 0.5 - 1e-5
    assert weight.max() <= 1.0 + 1e-5
    assert weight.std() > 0.05
    eye = np.eye(CLASSES)
    expected = weight[:, None] * eye[own % CLASSES] + (1 - weight)[:, None] * eye[other % CLASSES]
    np.testing.assert_allclose(targets, expected, atol=1e-5)


def test_cutmix_pastes_one_box_and_weighs_targets_by_its_area(batch):
    images, targets = cutmix(*batch, 1.0, jax.random.key(2))
    images = np.asarray(images)
    own, other = np.arange(BATCH), np.arange(BATCH)[::-1]
    pasted = images[..., 0] == other[:, None, None]
    kept = images[..., 0] == own[:, None, None]
    assert (pasted | kept).all()
    for box in pasted:
        rows, columns = box.any(1), box.any(0)
        np.testing.assert_array_equal(box, rows[:, None] & columns[None])
        for line in (rows, columns):
            assert np.abs(np.diff(line.astype(int))).sum() <= 2  # one run
    area = pasted.mean((1, 2))
    assert 0.02 < area.mean() < 0.6
    eye = np.eye(CLASSES)
    expected = (1 - area)[:, None] * eye[own % CLASSES] + area[:, None] * eye[other % CLASSES]
    np.testing.assert_allclose(targets, expected, atol=1e-5)


def test_cutmix_boxes_have_the_area_of_their_share():
    """Uncut boxes cover 1 − Beta(α, α) of the image: ½ on average for α = 1, less at the border."""
    images = jnp.broadcast_to(jnp.arange(4000.0)[:, None, None, None], (4000, 16, 16, 1))
    mixed, _ = cutmix(images, jnp.zeros((4000, 2)), 1.0, jax.random.key(3))
    area = np.mean(np.asarray(mixed) != np.asarray(images), axis=(1, 2, 3))
    # E[area] = ∫ s·E[visible share of a side √s]² ds, by a sum over sides and centres.
    sides = np.sqrt((np.arange(200) + 0.5) / 200)
    centers = (np.arange(400) + 0.5) / 400
    low = np.clip(centers[None] - sides[:, None] / 2, 0, 1)
    high = np.clip(centers[None] + sides[:, None] / 2, 0, 1)
    expected = np.mean(np.mean(high - low, axis=1) ** 2)
    assert area.mean() == pytest.approx(expected, abs=0.01)


def test_with_both_on_half_the_batch_gets_each(batch):
    images, _ = mix(*batch, 0.5, 1.0, jax.random.key(4))
    images = np.asarray(images)
    half = BATCH // 2
    # A constant image stays constant in Mixup, and has one of two values in CutMix.
    assert (np.ptp(images[:half], axis=(1, 2, 3)) < 1e-4).all()
    own = np.arange(half, BATCH)[:, None, None, None]
    assert ((images[half:] == own) | (images[half:] == BATCH - 1 - own)).all()


def test_only_cutmix_is_cutmix_on_the_whole_batch(batch):
    images, _ = mix(*batch, 0.0, 1.0, jax.random.key(5))
    changed = (np.asarray(images) != np.asarray(batch[0])).any((1, 2, 3))
    assert changed[: BATCH // 2].mean() > 0.7
    assert changed[BATCH // 2 :].mean() > 0.7


def test_alpha_may_be_traced_and_images_keep_their_dtype(batch):
    images, targets = batch
    mixed, _ = jax.jit(mix)(images.astype(jnp.bfloat16), targets, 0.2, 0.0, jax.random.key(6))
    assert mixed.dtype == jnp.bfloat16


@pytest.mark.parametrize("alphas", [(0.5, 0.0), (0.0, 0.5), (0.5, 0.5)])
def test_nothing_is_mixed_with_what_is_no_image(batch, alphas):
    images, targets = batch
    mask = jnp.ones(BATCH).at[3].set(0.0)
    mixed = mix(images.at[3].set(jnp.nan), targets, *alphas, jax.random.key(4), mask)
    partner = BATCH - 1 - 3
    np.testing.assert_array_equal(mixed[0][partner], images[partner])
    np.testing.assert_array_equal(mixed[1][partner], targets[partner])
    others = np.delete(np.arange(BATCH), 3)
    assert np.isfinite(mixed[0][others]).all()
    assert (mixed[1][others] != targets[others]).any()
