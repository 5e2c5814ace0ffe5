"""Weights of classes in the loss, as a config gives them and as the training step takes them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
from absl import logging

from effnetv2_jax.runtime.errors import Number, UsageError, near_names

BALANCED: Final = "balanced"

# Weights in a form that can be compared: ``BALANCED``, a number per class, or pairs of a class's
# name and number.
Weights = Literal["balanced"] | tuple[float | tuple[str, float], ...] | None

_ALLOWED = Number(least=0)
# Names of classes that a message lists.
_FEW = 20


def normalized(value: Any) -> Weights:
    """Returns the field ``class_weights`` of a config in a form that can be compared with ``==``.

    Args:
        value: None, ``balanced``, a number per class, a mapping from names of classes to numbers,
            or the pairs of such a mapping. Empty ones count as None.

    Raises:
        UsageError: For anything else, and for a number that is negative or not finite.
    """
    if value is None or value == BALANCED:
        return value
    if isinstance(value, Mapping):
        value = list(value.items())
    if not isinstance(value, tuple | list):
        raise UsageError(
            f"class_weights must be 'balanced', a tuple of numbers or a dictionary of numbers by "
            f"the names of classes, got {value!r}"
        )
    if not value:
        return None
    if not all(isinstance(x, tuple | list) and len(x) == 2 for x in value):
        for number, weight in enumerate(value):
            _ALLOWED.check(f"class_weights[{number}]", weight)
        return tuple(map(float, value))
    by_name = {str(name): weight for name, weight in value}
    for name, weight in by_name.items():
        _ALLOWED.check(f"class_weights[{name!r}]", weight)
    return tuple((name, float(weight)) for name, weight in sorted(by_name.items()))


def resolve(
    weights: Weights, class_names: Sequence[str], count_classes: Callable[[], np.ndarray]
) -> tuple[float, ...] | None:
    """Returns a weight for each class; None if all classes weigh the same by default.

    Args:
        weights: The weights, from ``normalized``.
        class_names: The names of the classes in the order of their labels.
        count_classes: A function that returns the number of training examples of each class,
            which ``balanced`` needs. The weight of a class is then examples / (classes · its
            examples), as in scikit-learn, so that the mean over the examples is 1. A class without
            examples has 0.

    Raises:
        UsageError: For a wrong number of weights, an unknown class, and if all weights are 0.
    """
    if weights is None:
        return None
    found = np.ones(len(class_names))
    if weights == BALANCED:
        counts = count_classes()
        found = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1)) * (counts > 0)
    elif by_name := [pair for pair in weights if isinstance(pair, tuple)]:
        place = {name: number for number, name in enumerate(class_names)}
        for name, weight in by_name:
            if name not in place:
                near = near_names(name, class_names)[:3]
                few = list(class_names[:_FEW]) + ["…"] * (len(class_names) > _FEW)
                raise UsageError(
                    f"unknown class {name!r} in class_weights: "
                    + (f"did you mean {' or '.join(near)}? " if near else "")
                    + f"the {len(class_names)} classes are {', '.join(few)}"
                )
            found[place[name]] = weight
    else:
        if len(weights) != len(class_names):
            raise UsageError(
                f"class_weights must have one number for each of the {len(class_names)} classes, "
                f"got {len(weights)}"
            )
        found = np.array(weights)
    if not found.any():
        raise UsageError("class_weights must have a number above 0, got only 0")
    smallest, largest = int(found.argmin()), int(found.argmax())
    logging.info(
        "weights of classes in the loss: from %.4g (%s) to %.4g (%s)",
        *(found[smallest], class_names[smallest], found[largest], class_names[largest]),
    )
    return tuple(found.tolist())
