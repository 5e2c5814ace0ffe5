"""The answer to every single example, on several devices, padded and with several labels."""

import jax
import numpy as np

from effnetv2_jax.training import answers, evaluation
from effnetv2_jax.training import mesh as placement

CLASSES = 7
IMAGES = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def apply(params, batch_stats, images, *, train):
    """A network whose outputs are the first numbers of an image."""
    return images.reshape(len(images), -1)[:, :CLASSES] * params, batch_stats


def batches_of(labels, mask):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(mask), 2, 2, 3)).astype(np.uint8)
    rows = {"image": images, "label": np.int32(labels), "mask": np.float32(mask)}
    return [{name: x[i : i + 8] for name, x in rows.items()} for i in range(0, len(mask), 8)]


def collect(batches, devices=4):
    mesh = placement.make_mesh(jax.devices()[:devices])
    step = answers.make_answer_step(apply, mesh=mesh, **IMAGES)
    found = answers.collect(step, np.float32(0.02), {}, iter(batches), mesh, first=100)
    eval_step = evaluation.make_eval_step(apply, mesh=mesh, **IMAGES)
    return found, evaluation.evaluate(eval_step, np.float32(0.02), {}, iter(batches), mesh)


def test_answers_are_those_of_each_example_in_order():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, CLASSES, 40)
    mask = np.r_[1, 1, 0, np.ones(34), 0, 0, 0]
    batches = batches_of(labels, mask)
    found, metrics = collect(batches)
    kept = np.flatnonzero(mask)
    np.testing.assert_array_equal(found.number, 100 + kept)
    np.testing.assert_array_equal(found.label, labels[kept])
    pixels = np.concatenate([x["image"] for x in batches]).reshape(40, -1)[kept, :CLASSES]
    probabilities = np.asarray(jax.nn.softmax(0.02 * pixels.astype(np.float32)))
    order = np.argsort(-probabilities, axis=1, kind="stable")
    np.testing.assert_allclose(
        found.probabilities, np.take_along_axis(probabilities, order, 1)[:, :5], rtol=1e-5
    )
    own = probabilities[np.arange(len(kept)), labels[kept]]
    np.testing.assert_allclose(found.own, own, rtol=1e-5)
    np.testing.assert_allclose(found.loss, -np.log(own), rtol=1e-4)
    # The same numbers as the evaluation during training.
    assert found.metrics().keys() == metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(found.metrics()[name], value, rtol=1e-5)


def test_of_several_labels_the_likeliest_is_the_right_one():
    labels = np.tile([2, 5, -1], (8, 1))
    labels[3] = -1  # an image without any label does not count
    found, metrics = collect(batches_of(labels, np.ones(8)), devices=1)
    assert len(found.number) == metrics["count"] == 7
    assert set(found.label.tolist()) == {2, 5}
    assert found.metrics()["top1"] == metrics["top1"]
