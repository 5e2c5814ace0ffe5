"""Training losses, by name: of (logits [batch, classes], targets [batch, classes]) → [batch]."""

import jax
import jax.numpy as jnp
import optax


def softmax_cross_entropy(
    logits: jax.Array, targets: jax.Array, label_smoothing: float
) -> jax.Array:
    """Cross-entropy against targets that sum to 1, mixed with 1 / classes by label_smoothing."""
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))


def sigmoid_cross_entropy(
    logits: jax.Array, targets: jax.Array, label_smoothing: float
) -> jax.Array:
    """Mean over classes of the binary cross-entropy, targets drawn to ½ by label_smoothing.

    As ``tf.losses.sigmoid_cross_entropy``.
    """
    targets = targets * (1.0 - label_smoothing) + 0.5 * label_smoothing
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


def targets_of(labels: jax.Array, num_classes: int) -> jax.Array:
    """What losses are computed against, float32 [batch, classes].

    Args:
        labels: int32 [batch]; int32 [batch, labels] filled up with −1, of which each then weighs
            one over their number, as in ImageNet21k's published runs; or float32 [batch, classes],
            which is returned.
        num_classes: of the model.
    """
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return labels
    if labels.ndim == 1:
        return jax.nn.one_hot(labels, num_classes)
    # one_hot of −1 is zero.
    targets = jnp.minimum(jax.nn.one_hot(labels, num_classes).sum(axis=1), 1.0)
    return targets / jnp.maximum(targets.sum(axis=-1, keepdims=True), 1.0)


LOSSES = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}
