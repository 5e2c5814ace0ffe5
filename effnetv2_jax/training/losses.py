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


LOSSES = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}
