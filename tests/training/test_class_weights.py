"""Weights of classes: as a config gives them, as scikit-learn balances them, and in the step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.utils.class_weight import compute_class_weight

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training import class_weights, step
from effnetv2_jax.training import mesh as placement

NAMES = ("cat", "dog", "a.b c")


def resolve(value, counts=(1, 1, 1)):
    weights = class_weights.normalized(value)
    return class_weights.resolve(weights, NAMES, lambda: np.array(counts))


def test_balanced_weights_are_scikit_learns():
    labels = np.random.default_rng(0).choice(3, 500, p=(0.7, 0.25, 0.05))
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(resolve("balanced", np.bincount(labels)), expected, rtol=1e-12)
    # scikit-learn refuses a class without examples; here the others are balanced.
    labels = labels[labels != 1]
    expected = compute_class_weight("balanced", classes=np.array([0, 2]), y=labels)
    np.testing.assert_allclose(
        resolve("balanced", np.bincount(labels, minlength=3)), [expected[0], 0, expected[1]]
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ((), None),
        ({}, None),
        ((1, 2, 0.5), (1.0, 2.0, 0.5)),
        ([1, 2, 0], (1.0, 2.0, 0.0)),
        ({"dog": 3}, (1.0, 3.0, 1.0)),
        ([["a.b c", 2], ["cat", 0.5]], (0.5, 1.0, 2.0)),
    ],
)
def test_weights_are_a_number_per_class_or_by_name(value, expected):
    assert resolve(value) == expected
    # As config.json returns it.
    assert class_weights.normalized(value) == class_weights.normalized(
        [list(x) if isinstance(x, tuple) else x for x in value]
        if isinstance(value, tuple | list)
        else value
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((1.0, 2.0), "one number for each of the 3 classes, got 2"),
        ({"dgo": 2}, "unknown class 'dgo' in class_weights: did you mean dog"),
        ({"dog": -1}, r"class_weights\['dog'\] must be at least 0, got -1"),
        ((1, float("nan"), 1), r"class_weights\[1\] must be a finite number"),
        ((1, "2", 1), r"class_weights\[1\] must be a finite number"),
        ((0, 0, 0), "a number above 0, got only 0"),
        ("balancd", "must be 'balanced', a tuple of numbers or a dictionary"),
        (3, "must be 'balanced', a tuple of numbers or a dictionary"),
    ],
)
def test_weights_that_cannot_be_used_are_one_sentence(value, message):
    with pytest.raises(UsageError, match=message):
        resolve(value)


def a_step(devices, loss="softmax", accumulation_steps=1, **keywords):
    """Returns the gradient and the loss of a linear network on twelve images."""
    mesh = placement.make_mesh(jax.devices()[:devices])
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(12, 3)).astype(np.float32)}

    def apply(params, batch_stats, images, **_):
        return images.reshape(len(images), -1) @ params["kernel"], batch_stats

    train_step = step.make_train_step(
        apply,
        optax.identity(),
        mesh=mesh,
        num_classes=3,
        mean=(128.0,) * 3,
        std=(128.0,) * 3,
        loss=loss,
        label_smoothing=0.1,
        accumulation_steps=accumulation_steps,
        **keywords,
    )
    batch = {
        "image": rng.integers(0, 256, (8, 2, 2, 3)).astype(np.uint8),
        "label": rng.integers(0, 3, 8).astype(np.int32),
        "mask": np.float32([1, 1, 0, 1, 1, 1, 1, 1]),
    }
    arguments = (params, {}, np.int32(0), placement.shard_batch(batch, mesh))
    scalars = step.stage_scalars()
    gradients, _, sums = train_step.gradients(*arguments, scalars)
    text = train_step.gradients.lower(*arguments, scalars).as_text()
    return params, batch, gradients["kernel"], float(sums["loss"]), text


@pytest.mark.parametrize(("devices", "accumulation_steps"), [(1, 1), (4, 1), (4, 2)])
def test_each_example_counts_as_often_as_its_class_weighs(devices, accumulation_steps):
    weights = (1.0, 4.0, 0.25)
    params, batch, gradient, loss, _ = a_step(
        devices, accumulation_steps=accumulation_steps, class_weights=weights
    )
    images = (batch["image"].reshape(8, -1) - 128.0) / 128.0
    targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], 3), 0.1)
    shares = np.float32(weights)[batch["label"]] * batch["mask"]

    def total(kernel):
        return (optax.softmax_cross_entropy(images @ kernel, targets) * shares).sum()

    expected, slope = jax.value_and_grad(total)(jnp.asarray(params["kernel"]))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope / 7, rtol=1e-4, atol=1e-6)


def test_without_weights_the_program_is_the_same_and_with_ones_so_are_the_numbers():
    _, _, gradient, loss, text = a_step(1, loss="sigmoid")
    _, _, same_gradient, same_loss, other_text = a_step(
        1, loss="sigmoid", class_weights=(1.0, 1.0, 1.0)
    )
    assert text == a_step(1, loss="sigmoid", class_weights=None)[-1] != other_text
    assert loss == same_loss
    np.testing.assert_allclose(gradient, same_gradient, rtol=1e-6)
