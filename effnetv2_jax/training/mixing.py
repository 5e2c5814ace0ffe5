"""Mixup and CutMix inside the jitted step, on a batch mixed with its own reverse."""

import jax
import jax.numpy as jnp


def mixup(
    images: jax.Array, targets: jax.Array, alpha: float | jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mixes every image with one other (Zhang et al. 2018), λ = max(β, 1 − β), β ~ Beta(α, α).

    Args:
        images: float [batch, height, width, 3].
        targets: float32 [batch, classes].
        alpha: scalar; 0 changes nothing.
        key: a JAX random key.

    Returns:
        images and targets, shapes and dtypes unchanged.
    """
    weight = _beta(key, alpha, (images.shape[0],))
    weight = jnp.where(alpha > 0, jnp.maximum(weight, 1.0 - weight), 1.0)
    image_weight = weight[:, None, None, None].astype(images.dtype)
    return (
        images * image_weight + images[::-1] * (1 - image_weight),
        targets * weight[:, None] + targets[::-1] * (1 - weight[:, None]),
    )


def cutmix(
    images: jax.Array, targets: jax.Array, alpha: float | jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Pastes a box of another image into every image (Yun et al. 2019).

    The box is centred anywhere and covers 1 − β of the image before it is cut off at the border,
    β ~ Beta(α, α); targets are mixed by the area that is left.

    Args:
        images: float [batch, height, width, 3].
        targets: float32 [batch, classes].
        alpha: scalar; 0 changes nothing.
        key: a JAX random key.

    Returns:
        images and targets, shapes and dtypes unchanged.
    """
    batch, height, width, _ = images.shape
    beta_key, y_key, x_key = jax.random.split(key, 3)
    share = jnp.where(alpha > 0, 1.0 - _beta(beta_key, alpha, (batch,)), 0.0)
    rows = _covered(y_key, share, height)
    columns = _covered(x_key, share, width)
    box = rows[:, :, None] & columns[:, None, :]
    area = jnp.mean(box, axis=(1, 2), dtype=jnp.float32)[:, None]
    return (
        jnp.where(box[..., None], images[::-1], images),
        targets * (1 - area) + targets[::-1] * area,
    )


def mix(
    images: jax.Array,
    targets: jax.Array,
    mixup_alpha: float | jax.Array,
    cutmix_alpha: float | jax.Array,
    key: jax.Array,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Mixup, CutMix, or with both alphas above 0 Mixup on the first half and CutMix on the second.

    Args:
        images: float [batch, height, width, 3].
        targets: float32 [batch, classes].
        mixup_alpha: scalar, may be traced.
        cutmix_alpha: scalar, may be traced.
        key: a JAX random key.
        mask: [batch]; what is 0 there is no image, and nothing is mixed with it. None for all 1.
    """
    mixup_key, cutmix_key = jax.random.split(key)
    mixed_up = mixup(images, targets, mixup_alpha, mixup_key)
    cut_mixed = cutmix(images, targets, cutmix_alpha, cutmix_key)
    batch = images.shape[0]
    first_half = jnp.arange(batch) < batch // 2
    use_mixup = jnp.where(cutmix_alpha > 0, (mixup_alpha > 0) & first_half, True)
    mixed = (
        jnp.where(use_mixup[:, None, None, None], mixed_up[0], cut_mixed[0]),
        jnp.where(use_mixup[:, None], mixed_up[1], cut_mixed[1]),
    )
    if mask is None:
        return mixed
    has_partner = mask[::-1] > 0
    return (
        jnp.where(has_partner[:, None, None, None], mixed[0], images),
        jnp.where(has_partner[:, None], mixed[1], targets),
    )


def _beta(key: jax.Array, alpha: float | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    # Beta(0, 0) is not a distribution; callers ignore what is drawn for alpha 0.
    alpha = jnp.where(alpha > 0, alpha, 1.0)
    return jax.random.beta(key, alpha, alpha, shape)


def _covered(key: jax.Array, share: jax.Array, size: int) -> jax.Array:
    """Which pixels of an axis lie in a box of side sqrt(share)·size; bool [batch, size]."""
    center = jax.random.uniform(key, share.shape, maxval=size)
    half = jnp.sqrt(share) * size / 2
    low = jnp.round(jnp.clip(center - half, 0, size))[:, None]
    high = jnp.round(jnp.clip(center + half, 0, size))[:, None]
    position = jnp.arange(size)[None]
    return (position >= low) & (position < high)
