"""Mixup and CutMix, against what their definitions say of the result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from effnetv2_jax.training import mixing

BATCH, SIZE, CLASSES = 64, 24, 5
OWN = np.arange(BATCH)
# Its neighbour: 0 and 1, 2 and 3, ….
OTHER = OWN ^ 1
# Whose turn Mixup is where there is CutMix too.
MIXUPS_TURN = np.arange(BATCH) // 2 % 2 == 0


def mixup(images, targets, alpha, key):
    return mixing.mixup(images, targets, alpha, key, jnp.arange(len(images)))


def cutmix(images, targets, alpha, key):
    return mixing.cutmix(images, targets, alpha, key, jnp.arange(len(images)))


def mix(images, targets, mixup_alpha, cutmix_alpha, key, mask=None, index=None):
    """Mixes a whole batch of images, numbered from 0."""
    mask = jnp.ones(len(images)) if mask is None else mask
    index = jnp.arange(len(images)) if index is None else index
    return mixing.mix(images, targets, mixup_alpha, cutmix_alpha, key, mask, index)


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
    weight = (np.asarray(images)[:, 0, 0, 0] - OTHER) / (OWN - OTHER)
    assert weight.min() >= 0.5 - 1e-4
    assert weight.max() <= 1.0 + 1e-4
    # Neighbours draw one each.
    assert np.abs(weight[0::2] - weight[1::2]).mean() > 0.05
    eye = np.eye(CLASSES)
    expected = weight[:, None] * eye[OWN % CLASSES] + (1 - weight)[:, None] * eye[OTHER % CLASSES]
    np.testing.assert_allclose(targets, expected, atol=1e-4)


def test_cutmix_pastes_one_box_and_weighs_targets_by_its_area(batch):
    images, targets = cutmix(*batch, 1.0, jax.random.key(2))
    images = np.asarray(images)
    pasted = images[..., 0] == OTHER[:, None, None]
    kept = images[..., 0] == OWN[:, None, None]
    assert (pasted | kept).all()
    for box in pasted:
        rows, columns = box.any(1), box.any(0)
        np.testing.assert_array_equal(box, rows[:, None] & columns[None])
        for line in (rows, columns):
            assert np.abs(np.diff(line.astype(int))).sum() <= 2  # one run
    area = pasted.mean((1, 2))
    assert 0.02 < area.mean() < 0.6
    eye = np.eye(CLASSES)
    expected = (1 - area)[:, None] * eye[OWN % CLASSES] + area[:, None] * eye[OTHER % CLASSES]
    np.testing.assert_allclose(targets, expected, atol=1e-5)


# From what is 0 or 1 nearly always to what is nearly always ½; of 20,000 neighbours each.
@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 8.0])
def test_mixups_weights_are_distributed_as_scipys_beta(alpha):
    count = 20000
    targets = jax.nn.one_hot(jnp.arange(count) % 2, 2)
    _, mixed = mixup(jnp.zeros((count, 1, 1, 3)), targets, alpha, jax.random.key(8))
    weight = np.sort(np.asarray(mixed)[np.arange(count), np.arange(count) % 2])
    beta = stats.beta(alpha, alpha)
    points = np.linspace(0.5, 0.999, 50)[1:]
    found = np.searchsorted(weight, points) / count
    # max(β, 1 − β) is less than x where β is between 1 − x and x.
    np.testing.assert_allclose(found, beta.cdf(points) - beta.cdf(1 - points), atol=0.015)
    # The mean of the squares of β and 1 − β is that of β²: half of λ² + (1 − λ)².
    moment = np.mean(weight**2 + (1 - weight) ** 2) / 2
    assert moment == pytest.approx(beta.moment(2), abs=0.005)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_cutmix_boxes_have_the_area_of_their_share(alpha):
    """Uncut boxes cover 1 − Beta(α, α) of the image: ½ on average, and less at the border."""
    images = jnp.broadcast_to(jnp.arange(4000.0)[:, None, None, None], (4000, 16, 16, 1))
    mixed, _ = cutmix(images, jnp.zeros((4000, 2)), alpha, jax.random.key(3))
    area = np.mean(np.asarray(mixed) != np.asarray(images), axis=(1, 2, 3))
    # E[area] = ∫ s·E[visible share of a side √s]² ds, by a sum over sides and centres.
    sides = np.sqrt(stats.beta(alpha, alpha).ppf((np.arange(200) + 0.5) / 200))
    centers = (np.arange(400) + 0.5) / 400
    low = np.clip(centers[None] - sides[:, None] / 2, 0, 1)
    high = np.clip(centers[None] + sides[:, None] / 2, 0, 1)
    expected = np.mean(np.mean(high - low, axis=1) ** 2)
    # Four standard errors; rounding to 16 px is less.
    assert area.mean() == pytest.approx(expected, abs=4 * area.std() / 4000**0.5)


def test_with_both_on_half_the_batch_gets_each(batch):
    images, _ = mix(*batch, 0.5, 1.0, jax.random.key(4))
    images = np.asarray(images)
    # A constant image stays constant in Mixup, and has one of two values in CutMix.
    constant = np.ptp(images, axis=(1, 2, 3)) < 1e-4
    own, other = (x[:, None, None, None] for x in (OWN, OTHER))
    of_two = ((images == own) | (images == other)).all((1, 2, 3))
    assert constant[MIXUPS_TURN].all()
    assert of_two[~MIXUPS_TURN].all()
    assert of_two[MIXUPS_TURN].mean() < 0.1
    assert constant[~MIXUPS_TURN].mean() < 0.7


def test_only_cutmix_is_cutmix_on_the_whole_batch(batch):
    images, _ = mix(*batch, 0.0, 1.0, jax.random.key(5))
    changed = (np.asarray(images) != np.asarray(batch[0])).any((1, 2, 3))
    assert changed[MIXUPS_TURN].mean() > 0.7
    assert changed[~MIXUPS_TURN].mean() > 0.7


def test_alpha_may_be_traced_and_images_keep_their_dtype(batch):
    images, targets = batch
    mixed, _ = jax.jit(mix)(images.astype(jnp.bfloat16), targets, 0.2, 0.0, jax.random.key(6))
    assert mixed.dtype == jnp.bfloat16


@pytest.mark.parametrize("alphas", [(0.5, 0.0), (0.0, 0.5), (0.5, 0.5)])
def test_nothing_is_mixed_with_what_is_no_image(batch, alphas):
    images, targets = batch
    mask = jnp.ones(BATCH).at[3].set(0.0)
    mixed = mix(images.at[3].set(jnp.nan), targets, *alphas, jax.random.key(4), mask)
    partner = OTHER[3]
    np.testing.assert_array_equal(mixed[0][partner], images[partner])
    np.testing.assert_array_equal(mixed[1][partner], targets[partner])
    others = np.delete(np.arange(BATCH), 3)
    assert np.isfinite(mixed[0][others]).all()
    assert (mixed[1][others] != targets[others]).any()


@pytest.mark.parametrize("alphas", [(0.5, 0.0), (0.0, 1.0), (0.5, 1.0)])
def test_what_becomes_of_a_pair_is_a_function_of_its_numbers(batch, alphas):
    """Its place in the batch and the other pairs change nothing."""
    key = jax.random.key(9)
    mixed = mix(*batch, *alphas, key)
    # Some pairs in another order, as on another device.
    rows = np.arange(BATCH).reshape(-1, 2)[[5, 20, 3, 8]].reshape(-1)
    again = mix(*(x[rows] for x in batch), *alphas, key, index=jnp.asarray(rows))
    for x, expected in zip(again, mixed, strict=True):
        np.testing.assert_allclose(x, expected[rows], rtol=1e-6)
    other = mix(*(x[rows] for x in batch), *alphas, key, index=jnp.asarray(rows) + 4)
    assert (np.asarray(other[1]) != np.asarray(again[1])).any(1).mean() > 0.5


@pytest.mark.parametrize("alphas", [(0.5, 0.0), (0.0, 1.0), (0.5, 1.0)])
def test_the_last_of_an_odd_number_stays_as_it_is(batch, alphas):
    key, odd = jax.random.key(10), 7
    whole, part = mix(*batch, *alphas, key), mix(*(x[:odd] for x in batch), *alphas, key)
    for x, mixed, expected in zip(batch, part, whole, strict=True):
        np.testing.assert_allclose(mixed[:-1], expected[: odd - 1], rtol=1e-6)
        np.testing.assert_allclose(mixed[-1], x[odd - 1], rtol=1e-6)
    alone = mix(*(x[:1] for x in batch), *alphas, key)
    np.testing.assert_allclose(alone[0], batch[0][:1], rtol=1e-6)
