"""Numbers of a classifier's answers: per class, per pair of classes, and how sure it rightly is."""

import dataclasses

import numpy as np

from effnetv2_jax.training.answers import Answers


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """How a network does on one class.

    Attributes:
        number: The number of the class.
        images: The number of images of the class.
        correct: The number of those that were recognised.
        predicted: The number of images of any class that were taken for this one.
        taken_for: The class that its other images were most often taken for, None if there is none.
        times: The number of times that this happened.
    """

    number: int
    images: int
    correct: int
    predicted: int
    taken_for: int | None
    times: int

    @property
    def accuracy(self) -> float:
        """The share of its images that were recognised, in 0 … 1; NaN if there is no image."""
        return self.correct / self.images if self.images else float("nan")

    @property
    def precision(self) -> float:
        """The share of the images taken for it that are, in 0 … 1; NaN if there is none."""
        return self.correct / self.predicted if self.predicted else float("nan")


@dataclasses.dataclass(frozen=True)
class Confusions:
    """Pairs of classes that occur, the most frequent first.

    Attributes:
        label: The right class, [pairs].
        predicted: The class it was taken for, which may be the same, [pairs].
        count: The number of images, [pairs].
    """

    label: np.ndarray
    predicted: np.ndarray
    count: np.ndarray


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How often a network is right, by the probability that it gives its likeliest class.

    Attributes:
        edges: The edges of the bins, [bins + 1].
        count: The number of images in each bin, [bins].
        confidence: The mean probability in each bin, NaN if it is empty, [bins].
        accuracy: The share of right answers in each bin, NaN if it is empty, [bins].
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error in 0 … 1: the mean gap, weighted by images."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(gaps * self.count) / self.count.sum())


def find_confusions(answers: Answers) -> Confusions:
    """Counts which classes are taken for which."""
    pairs = np.stack([answers.label, answers.classes[:, 0]])
    (label, predicted), count = np.unique(pairs, axis=1, return_counts=True)
    order = np.argsort(-count, kind="stable")
    return Confusions(label[order], predicted[order], count[order])


def score_classes(confusions: Confusions, num_classes: int) -> list[ClassScore]:
    """Returns the scores of all classes in the order of their numbers."""
    label, predicted, count = confusions.label, confusions.predicted, confusions.count
    right = label == predicted
    images, taken, correct = (
        np.bincount(classes, weights, num_classes).astype(int).tolist()
        for classes, weights in ((label, count), (predicted, count), (label[right], count[right]))
    )
    # The first mistake of a class is its most frequent one.
    worst: dict[int, tuple[int, int]] = {}
    mistakes = (x[~right].tolist() for x in (label, predicted, count))
    for one, other, times in zip(*mistakes, strict=True):
        worst.setdefault(one, (other, times))
    return [
        ClassScore(i, images[i], correct[i], taken[i], *worst.get(i, (None, 0)))
        for i in range(num_classes)
    ]


def calibrate(answers: Answers, bins: int = 15) -> Calibration:
    """Sorts answers into bins of equal width by their confidence (Guo et al. 2017).

    Of a bin's two edges, the upper one belongs to it.
    """
    confidence = answers.probabilities[:, 0].astype(np.float64)
    edges = np.linspace(0, 1, bins + 1)
    place = np.searchsorted(edges[1:-1], confidence)
    count, sure, right = (
        np.bincount(place, weights, bins) for weights in (None, confidence, answers.rank < 1)
    )
    with np.errstate(invalid="ignore"):
        return Calibration(edges, count, sure / count, right / count)
