"""Per-class numbers, confusions and calibration against scikit-learn's."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from effnetv2_jax.inspection import statistics
from effnetv2_jax.training.answers import Answers

CLASSES = 6


@pytest.fixture(scope="module")
def answers():
    """Answers to 500 images of five classes; class 4 has none."""
    rng = np.random.default_rng(0)
    label = rng.choice([0, 1, 2, 3, 5], 500)
    logits = rng.normal(size=(500, CLASSES))
    logits[np.arange(500), label] += 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    order = np.argsort(-probabilities, axis=1)[:, :5]
    own = probabilities[np.arange(500), label]
    return Answers(
        number=np.arange(500),
        label=label,
        classes=order,
        probabilities=np.take_along_axis(probabilities, order, 1),
        own=own,
        rank=(probabilities > own[:, None]).sum(1),
        loss=-np.log(own),
    )


def test_confusions_and_scores_are_scikit_learns(answers):
    predicted = answers.classes[:, 0]
    expected = confusion_matrix(answers.label, predicted, labels=range(CLASSES))
    confusions = statistics.find_confusions(answers)
    found = np.zeros_like(expected)
    found[confusions.label, confusions.predicted] = confusions.count
    np.testing.assert_array_equal(found, expected)
    assert (np.diff(confusions.count) <= 0).all()
    scores = statistics.score_classes(confusions, CLASSES)
    precision, recall, _, support = precision_recall_fscore_support(
        answers.label, predicted, labels=range(CLASSES), zero_division=np.nan
    )
    np.testing.assert_allclose([x.precision for x in scores], precision)
    np.testing.assert_allclose([x.accuracy for x in scores], recall)
    assert [x.images for x in scores] == support.tolist()
    wrong = expected - np.diag(np.diag(expected))
    assert [x.times for x in scores] == wrong.max(axis=1).tolist()
    assert all(wrong[x.number, x.taken_for] == x.times for x in scores if x.images)
    assert scores[4].taken_for is None


def test_calibration_is_scikit_learns(answers):
    calibration = statistics.calibrate(answers, bins=10)
    right = answers.classes[:, 0] == answers.label
    accuracy, confidence = calibration_curve(right, answers.probabilities[:, 0], n_bins=10)
    filled = calibration.count > 0
    np.testing.assert_allclose(calibration.accuracy[filled], accuracy)
    np.testing.assert_allclose(calibration.confidence[filled], confidence)
    assert 0 < filled.sum() < 10
    below, above = calibration.edges[:-1][filled], calibration.edges[1:][filled]
    assert ((below < confidence) & (confidence <= above)).all()
    expected = np.sum(np.abs(accuracy - confidence) * calibration.count[filled]) / 500
    assert calibration.error == pytest.approx(expected)
