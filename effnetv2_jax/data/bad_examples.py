"""Examples that cannot be decoded: named in the log, counted, and too many of them end the run."""

import re
from collections.abc import Iterable

import tensorflow as tf
from absl import logging

from effnetv2_jax.data.decoding import decode_box, whole_box
from effnetv2_jax.data.sources import Source
from effnetv2_jax.runtime.errors import UsageError


class BadExamples:
    """The examples of a split that a run could not use.

    Args:
        source: The data set.
        split: The name of the split.
        max_fraction: The largest fraction of the split's examples that may be bad.
    """

    def __init__(self, source: Source, split: str, max_fraction: float):
        self._split = source.split(split)
        self._name = f"split {split!r} of {source.name}"
        self._max_fraction = max_fraction
        self._limit = max_fraction * self._split.size
        self._found: set[int] = set()

    def add(self, numbers: Iterable[int | tf.Tensor]) -> None:
        """Counts examples once each, by their numbers, and names them in the log with the reasons.

        Raises:
            UsageError: If there are more than max_fraction allows.
        """
        for number in sorted({int(number) for number in numbers} - self._found):
            self._found.add(number)
            why = self._why(number) or "but it can be when read again"
            logging.warning(
                "left out, as it cannot be decoded: %s (%s)", self._split.describe(number), why
            )
        if len(self._found) > self._limit:
            raise UsageError(
                f"{len(self._found)} of the {self._split.size} examples of {self._name} cannot be "
                f"decoded, the last {self._split.describe(max(self._found))!r}, but "
                f"data.max_bad_fraction allows {self._max_fraction:g}: mend or delete them "
                "(the log names them all), or allow more"
            )

    def refuse_if_all(self, numbers: Iterable[int | tf.Tensor]) -> None:
        """Refuses a split if none of the examples with these numbers can be decoded.

        Otherwise a split without images would be read until the limit is reached.

        Raises:
            UsageError: If none can be decoded, and they are more than max_fraction allows.
        """
        reasons = {}
        for number in map(int, numbers):
            reasons[number] = self._why(number)
            if reasons[number] is None:
                return
        if len(reasons) > self._limit:
            first, why = next(iter(reasons.items()))
            raise UsageError(
                f"none of the first {len(reasons)} examples of {self._name} can be decoded, the "
                f"first is {self._split.describe(first)!r} ({why}): are these images?"
            )

    def _why(self, number: int) -> str | None:
        """TensorFlow's reason not to decode an example, None if it can be decoded."""
        first, count = tf.constant(number, tf.int64), tf.constant(1, tf.int64)
        try:
            for example in self._split.read(first, count):
                decode_box(example["image"], whole_box)
        except tf.errors.OpError as error:
            # Without the names of the nodes around the sentence.
            text = re.sub(r"\{\{.*?\}\}|\[Op:.*|\[\[.*", "", error.message.splitlines()[0])
            return text.strip() or type(error).__name__
        return None
