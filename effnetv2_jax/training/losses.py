"""Training losses by name.

A loss maps logits and targets, both float32 [batch, classes], to float32 [batch].
"""

import jax
import jax.numpy as jnp
import optax


def softmax_cross_entropy(
    logits: jax.Array, targets: jax.Array, label_smoothing: float
) -> jax.Array:
    """Returns the cross-entropy with targets that sum to 1; smoothing mixes in 1 / classes."""
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))


def sigmoid_cross_entropy(
    logits: jax.Array, targets: jax.Array, label_smoothing: float
) -> jax.Array:
    """Returns the mean over classes of the binary cross-entropy; smoothing draws targets to ½.

    This is ``tf.losses.sigmoid_cross_entropy``.
    """
    targets = targets * (1.0 - label_smoothing) + 0.5 * label_smoothing
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


def targets_of(labels: jax.Array, num_classes: int) -> jax.Array:
    """Returns the targets of losses, float32 [batch, classes].

    Args:
        labels: The labels in one of three forms. int32 [batch] has one label each. int32 [batch,
            labels], filled up with −1, has several, and each weighs one over their number, as in
            ImageNet21k's published runs. float32 [batch, classes] is returned unchanged.
        num_classes: The number of classes of the model.
    """
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return labels
    if labels.ndim == 1:
        return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    # The one-hot vector of −1 is zero.
    targets = jnp.minimum(jax.nn.one_hot(labels, num_classes, dtype=jnp.float32).sum(axis=1), 1.0)
    return targets / jnp.maximum(targets.sum(axis=-1, keepdims=True), 1.0)


LOSSES = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}
