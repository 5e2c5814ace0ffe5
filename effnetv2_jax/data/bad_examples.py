"""Examples that cannot be decoded: named in the log, counted, and too many of them end the run."""

import numpy as np
from absl import logging

from effnetv2_jax.data.source import Split
from effnetv2_jax.errors import UsageError


class BadExamples:
    """The examples of a split that a run could not use.

    Args:
        split: of a source.
        name: of the split, for messages.
        max_fraction: of the split's examples that may be bad.
    """

    def __init__(self, split: Split, name: str, max_fraction: float):
        self._split = split
        self._name = name
        self._limit = max_fraction * split.size
        self._max_fraction = max_fraction
        self._found: set[int] = set()

    def add(self, indices: np.ndarray) -> None:
        """Counts each example once.

        Args:
            indices: numbers in the split.

        Raises:
            UsageError: where there are more than max_fraction allows.
        """
        for index in sorted(set(indices.tolist()) - self._found):
            self._found.add(index)
            logging.warning("left out, as it cannot be decoded: %s", self._split.describe(index))
        if len(self._found) > self._limit:
            raise UsageError(
                f"{len(self._found)} of the {self._split.size} examples of {self._name} cannot be "
                f"decoded, the last {self._split.describe(max(self._found))!r}, but "
                f"data.max_bad_fraction allows {self._max_fraction:g}: mend or delete them "
                "(the log names them all), or allow more"
            )
