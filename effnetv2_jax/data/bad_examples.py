"""Examples that cannot be decoded: named in the log, counted, and too many of them end the run."""

import re

import numpy as np
import tensorflow as tf
from absl import logging

from effnetv2_jax.data.decoding import decode_box, whole_box
from effnetv2_jax.data.sources.base import Split
from effnetv2_jax.runtime.errors import UsageError


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
            why = self._why(index) or "but it can be when read again"
            logging.warning(
                "left out, as it cannot be decoded: %s (%s)", self._split.describe(index), why
            )
        if len(self._found) > self._limit:
            raise UsageError(
                f"{len(self._found)} of the {self._split.size} examples of {self._name} cannot be "
                f"decoded, the last {self._split.describe(max(self._found))!r}, but "
                f"data.max_bad_fraction allows {self._max_fraction:g}: mend or delete them "
                "(the log names them all), or allow more"
            )

    def refuse_if_all(self, indices: np.ndarray) -> None:
        """Raises UsageError where none of some examples can be decoded.

        A split that is bad throughout would otherwise be read to its end in search of a good one.
        """
        reasons = []
        for index in indices.tolist():
            reason = self._why(index)
            if reason is None:
                return
            reasons.append(reason)
        if reasons and len(reasons) > self._limit:
            raise UsageError(
                f"none of the first {len(reasons)} examples of {self._name} can be decoded, the "
                f"first is {self._split.describe(indices[0])!r} ({reasons[0]}): are these images?"
            )

    def _why(self, index: int) -> str | None:
        """What TensorFlow has against an example; None where it can be decoded."""
        try:
            for example in self._split.read(tf.constant(index, tf.int64), tf.constant(1, tf.int64)):
                decode_box(example["image"], whole_box)
        except tf.errors.OpError as error:
            # Without the names of the nodes around the sentence.
            text = re.sub(r"\{\{.*?\}\}|\[Op:.*|\[\[.*", "", error.message.splitlines()[0])
            return text.strip() or type(error).__name__
        return None
