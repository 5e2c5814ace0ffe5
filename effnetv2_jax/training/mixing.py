"""Mixup and CutMix inside the jitted step.

Each example is mixed with its neighbour: 0 with 1, 2 with 3, and so on. Pairs therefore do not
depend on the number of devices, as long as each device has an even number of examples. The last
example of an odd number is mixed with itself.
"""

import jax
import jax.numpy as jnp

from effnetv2_jax.models.layers import uniform_by_example


def mixup(
    images: jax.Array,
    targets: jax.Array,
    alpha: float | jax.Array,
    key: jax.Array,
    index: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Mixes every image with its neighbour (Zhang et al. 2018).

    An image keeps the weight λ = max(β, 1 − β) with β ~ Beta(α, α). Each of two neighbours draws
    its own.

    Args:
        images: The images, float [batch, height, width, 3].
        targets: The targets, float32 [batch, classes].
        alpha: The parameter α, a scalar. 0 changes nothing.
        key: A JAX random key.
        index: The number of each example, int32 [batch]. What is drawn for an example is a function
            of the key and its number.

    Returns:
        The mixed images and targets, with unchanged shapes and dtypes.
    """
    weight = _beta(alpha, uniform_by_example(key, index, (2,)))
    weight = jnp.where(alpha > 0, jnp.maximum(weight, 1.0 - weight), 1.0)
    image_weight = weight[:, None, None, None].astype(images.dtype)
    return (
        images * image_weight + _neighbours(images) * (1 - image_weight),
        targets * weight[:, None] + _neighbours(targets) * (1 - weight[:, None]),
    )


def cutmix(
    images: jax.Array,
    targets: jax.Array,
    alpha: float | jax.Array,
    key: jax.Array,
    index: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Pastes a box of its neighbour into every image (Yun et al. 2019).

    The centre of the box is anywhere. The box covers 1 − β of the image with β ~ Beta(α, α), before
    it is cut off at the border. Targets are mixed by the area that is left. Each of two neighbours
    has its own box.

    Args:
        images: The images, float [batch, height, width, 3].
        targets: The targets, float32 [batch, classes].
        alpha: The parameter α, a scalar. 0 changes nothing.
        key: A JAX random key.
        index: The number of each example, int32 [batch], as for ``mixup``.

    Returns:
        The mixed images and targets, with unchanged shapes and dtypes.
    """
    height, width = images.shape[1:3]
    drawn = uniform_by_example(key, index, (4,))
    share = jnp.where(alpha > 0, 1.0 - _beta(alpha, drawn[:, :2]), 0.0)
    rows = _covered(drawn[:, 2], share, height)
    columns = _covered(drawn[:, 3], share, width)
    box = rows[:, :, None] & columns[:, None, :]
    area = jnp.mean(box, axis=(1, 2), dtype=jnp.float32)[:, None]
    return (
        jnp.where(box[..., None], _neighbours(images), images),
        targets * (1 - area) + _neighbours(targets) * area,
    )


def mix(
    images: jax.Array,
    targets: jax.Array,
    mixup_alpha: float | jax.Array,
    cutmix_alpha: float | jax.Array,
    key: jax.Array,
    mask: jax.Array,
    index: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Applies Mixup or CutMix.

    If both alphas are above 0, each is applied to half of the examples: Mixup to those numbered 0,
    1, 4, 5, …, and CutMix to 2, 3, 6, 7, ….

    Args:
        images, targets, key, index: See ``mixup``.
        mixup_alpha: The parameter of Mixup, a scalar that may be traced.
        cutmix_alpha: The parameter of CutMix, a scalar that may be traced.
        mask: A mask [batch] that is 0 for an example that is no image; nothing is mixed with it.

    Returns:
        The mixed images and targets, with unchanged shapes and dtypes.
    """
    mixup_key, cutmix_key = jax.random.split(key)
    mixed_up = mixup(images, targets, mixup_alpha, mixup_key, index)
    cut_mixed = cutmix(images, targets, cutmix_alpha, cutmix_key, index)
    mixups_turn = index // 2 % 2 == 0
    use_mixup = jnp.where(cutmix_alpha > 0, (mixup_alpha > 0) & mixups_turn, True)
    mixed = (
        jnp.where(use_mixup[:, None, None, None], mixed_up[0], cut_mixed[0]),
        jnp.where(use_mixup[:, None], mixed_up[1], cut_mixed[1]),
    )
    has_partner = _neighbours(mask) > 0
    return (
        jnp.where(has_partner[:, None, None, None], mixed[0], images),
        jnp.where(has_partner[:, None], mixed[1], targets),
    )


def _neighbours(x: jax.Array) -> jax.Array:
    """Returns rows 1, 0, 3, 2, …; the last of an odd number stays."""
    # Unlike a gather, XLA can fuse this.
    pairs = len(x) // 2
    swapped = x[: 2 * pairs].reshape(pairs, 2, *x.shape[1:])[:, ::-1]
    return jnp.concatenate([swapped.reshape(-1, *x.shape[1:]), x[2 * pairs :]])


def _beta(alpha: float | jax.Array, uniform: jax.Array) -> jax.Array:
    """Makes draws of Beta(α, α), [batch], from uniform numbers [batch, 2].

    Unlike ``jax.random.beta``, this has no loop. Bailey's polar method (1994, Math. Comp. 62) makes
    a draw t of Student's distribution with 2α degrees of freedom; ½ + ½·t / √(2α + t²) is then
    beta-distributed.
    """
    # Beta(0, 0) is not a distribution; callers ignore what is drawn for it.
    log_w = jnp.log(uniform[:, 0]) / jnp.where(alpha > 0, alpha, 1.0)
    cosine = jnp.cos(2 * jnp.pi * uniform[:, 1])
    # t² / 2α = cosine² · (1 − w) / w, where w = u^(1/α) may be too small to divide by.
    w, rest = jnp.maximum(jnp.exp(log_w), jnp.finfo(jnp.float32).tiny), -jnp.expm1(log_w)
    return jnp.clip(0.5 + 0.5 * cosine * jnp.sqrt(rest / (w + rest * jnp.square(cosine))), 0, 1)


def _covered(center: jax.Array, share: jax.Array, size: int) -> jax.Array:
    """Returns bool [batch, size]: the pixels of an axis in a box of side sqrt(share)·size.

    ``center`` [batch] is a fraction of the axis, ``share`` [batch] one of the image's area.
    """
    half = jnp.sqrt(share) / 2
    low = jnp.round(size * jnp.clip(center - half, 0, 1))[:, None]
    high = jnp.round(size * jnp.clip(center + half, 0, 1))[:, None]
    position = jnp.arange(size)[None]
    return (position >= low) & (position < high)
