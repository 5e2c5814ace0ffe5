"""The input pipeline: a fresh tf.data graph for every stage of progressive learning.

A run's batches are a pure function of (seed, position in the stream of epochs). `order` says which
example is at a position, and every example draws its crop, flip and augmentation from its own seed.
A pipeline can therefore start anywhere. A resumed run sees what the uninterrupted one would have
seen, and so does a run with another number of processes or threads.
"""

import atexit
import contextlib
import dataclasses
import functools
import math
import os
import re
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np
import tensorflow as tf
from absl import logging

from effnetv2_jax.data.decoding import decode_box, whole_box
from effnetv2_jax.data.images import Augmentation, eval_image, train_image
from effnetv2_jax.data.order import CHUNK, attempt, read_row
from effnetv2_jax.data.sampling import make_order
from effnetv2_jax.data.sources import Example, Source, Split
from effnetv2_jax.preprocessing import Preprocessing
from effnetv2_jax.progressive import Stage
from effnetv2_jax.runtime.errors import UsageError, reason

Batch = dict[str, np.ndarray]

# Finished batches that wait for the device.
_PREFETCH = 2
# Examples that one thread prepares in a row, and the bytes that they may take. A row costs
# some time of its own, so longer rows save time. Large images take longer, and rows may be shorter.
_ROW = 32
_ROW_BYTES = 2**23
# Rows begun per thread. They are passed on in order, and a thread that has finished an easy one
# should not wait for a hard one before it.
_ROWS_BEGUN = 2
# Chunks that an evaluation reads at the same time.
_EVAL_READERS = 8
# Bad examples that every split may have, unless they are more than half of it or none are allowed.
_FEW = 5
# Examples of which at least one must be good for a stage to begin.
_PROBED = 8


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of every batch that this process reads.

    Attributes:
        index: The number of this process.
        count: The number of processes.
        threads: The number of threads that prepare images. None means one per core.
    """

    index: int = 0
    count: int = 1
    threads: int | None = None

    def range_of(self, size: int) -> tuple[int, int]:
        """Returns the first example of a split that this process evaluates, and the end."""
        return size * self.index // self.count, size * (self.index + 1) // self.count


def train_batches(
    source: Source,
    split: str,
    stage: Stage,
    *,
    first_example: int,
    num_batches: int,
    seed: int,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    sampler: str = "shuffled",
    max_bad_fraction: float = 0.001,
    share: Share = Share(),
) -> Iterator[Batch]:
    """Yields this process's part of a stage's training batches.

    An example that cannot be decoded keeps its place, as zeros with mask 0.

    Args:
        source: The data set.
        split: The name of its split, e.g. ``train``.
        stage: The stage, of which image size, magnitude and batch size (over all processes) are
            used.
        first_example: The number of examples of the endless stream of epochs that came before, over
            all processes.
        num_batches: The number of batches after which the iterator ends.
        seed: The seed of the run.
        preprocessing: The input family.
        augmentation: Crop, flip, and RandAugment or AutoAugment.
        sampler: The order of examples, a name in ``sampling.SAMPLERS``.
        max_bad_fraction: The largest fraction of the split's examples that may be undecodable. If
            it is above 0, five may be, up to half of the split.
        share: The part of every batch that this process reads.

    Yields:
        ``image`` uint8 [batch, size, size, 3], ``label`` int32 [batch] or, if examples have several
        labels, [batch, labels] filled up with −1, ``mask`` float32 [batch], and ``index`` int32
        [batch], the number of each example in the batch of all processes.

    Raises:
        UsageError: For a split with fewer examples than a batch, a batch that the processes do not
            divide, and, during iteration, for too many bad examples.
    """
    examples = source.split(split)
    if examples.size < stage.batch_size:
        raise UsageError(
            f"batch_size must be at most the {examples.size} examples of split {split!r} of "
            f"{source.name}, got {stage.batch_size}"
        )
    order = make_order(source, split, seed, sampler)
    elements = order.elements(first_example, share.index, share.count)
    batch_size = _batch_share("batch_size", stage.batch_size, share)
    bad = _BadExamples(source, split, max_bad_fraction)
    probed = range(first_example + share.index, first_example + _PROBED * share.count, share.count)
    bad.refuse_if_all([order.locate(position) for position in probed[: num_batches * batch_size]])

    def prepare(element: Example) -> Example:
        example = order.fetch(element)
        image = train_image(example["image"], example["seed"], stage, preprocessing, augmentation)
        return {"image": image, "label": example["label"]}

    dataset = _batches(
        elements.take(num_batches * batch_size),
        prepare,
        stage.image_size,
        source.label_shape,
        batch_size,
        share.threads,
    )
    index = np.arange(share.index, stage.batch_size, share.count, dtype=np.int32)

    def checked() -> Generator[Batch, None, None]:
        for batch in dataset.as_numpy_iterator():
            positions = batch.pop("position")[batch["mask"] == 0]
            bad.add([order.locate(position) for position in positions])
            yield batch | {"index": index}

    return _closed_at_exit(checked())


def examples_at(
    source: Source,
    split: str,
    seed: int,
    *,
    first_example: int,
    count: int,
    sampler: str = "shuffled",
) -> list[tuple[int, str]]:
    """Finds out which examples a training batch has, without reading them.

    Args:
        source, split, seed, sampler: See ``train_batches``.
        first_example: The batch's first position, as for ``train_batches``.
        count: The number of examples in the batch, over all processes.

    Returns:
        The number in the split and the description of each example, in the order of the stream.
    """
    order = make_order(source, split, seed, sampler)
    numbers = [int(order.locate(first_example + i)) for i in range(count)]
    return [(number, order.split.describe(number)) for number in numbers]


def eval_batches(
    source: Source,
    split: str,
    *,
    image_size: int,
    batch_size: int,
    preprocessing: Preprocessing,
    max_bad_fraction: float = 0.001,
    share: Share = Share(),
) -> Iterator[Batch]:
    """Yields every example of a split once. The last batches are padded.

    Args:
        source, split, preprocessing, max_bad_fraction: See ``train_batches``.
        image_size: The side of the square images in px.
        batch_size: The number of images per batch, over all processes.
        share: The part of the split that this process reads. All have the same number of batches.

    Yields:
        The same as ``train_batches`` without ``index``; ``mask`` is 0 for padding, too.
    """
    examples = source.split(split)
    bad = _BadExamples(source, split, max_bad_fraction)
    batch_size = _batch_share("eval_batch_size", batch_size, share)
    begin, end = share.range_of(examples.size)
    largest_share = math.ceil(examples.size / share.count)
    num_batches = math.ceil(largest_share / batch_size)

    def prepare(element: Example) -> Example:
        example = examples.parse(element["record"])
        image = eval_image(example["image"], image_size, preprocessing)
        return {"image": image, "label": example["label"]}

    dataset = _batches(
        _read_once(examples, begin, end),
        prepare,
        image_size,
        source.label_shape,
        batch_size,
        share.threads,
    )

    def padded() -> Generator[Batch, None, None]:
        batches = dataset.as_numpy_iterator()
        nothing = {
            name: np.zeros((0, *spec.shape[1:]), spec.dtype.as_numpy_dtype)
            for name, spec in dataset.element_spec.items()
        }
        for _ in range(num_batches):
            batch = next(batches, nothing)
            bad.add(batch["position"][batch["mask"] == 0])
            if missing := batch_size - len(batch["mask"]):
                batch = {
                    name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
                    for name, array in batch.items()
                }
            yield {name: array for name, array in batch.items() if name != "position"}

    return _closed_at_exit(padded())


_open = weakref.WeakSet[Generator[Batch, None, None]]()


def _closed_at_exit(batches: Generator[Batch, None, None]) -> Iterator[Batch]:
    """Returns batches that end before Python does.

    The threads of tf.data call Pillow. When Python has begun to end, they would wait for it, and it
    would wait for them to end.
    """
    _open.add(batches)
    return batches


@atexit.register
def _close_all() -> None:
    for batches in list(_open):
        with contextlib.suppress(ValueError):  # A thread is reading it, and will be left alone.
            batches.close()


class _BadExamples:
    """The examples of a split that cannot be decoded: named in the log, and counted."""

    def __init__(self, source: Source, split: str, max_fraction: float):
        self._split = source.split(split)
        self._name = f"split {split!r} of {source.name}"
        size = self._split.size
        # A single image may be a large fraction of a small folder.
        few = min(_FEW, size // 2) if max_fraction else 0
        self._limit = max(few, int(max_fraction * size))
        self._max_fraction = max_fraction
        self._found: set[int] = set()

    def add(self, numbers: Iterable[int | tf.Tensor]) -> None:
        """Names each new example in the log; raises UsageError if there are too many by now."""
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
                f"data.max_bad_fraction allows {self._max_fraction:g}, here {self._limit}: mend or "
                "delete them (the log names them all), or allow more"
            )

    def refuse_if_all(self, numbers: Iterable[int | tf.Tensor]) -> None:
        """Raises UsageError if none can be decoded, and they are more than are allowed.

        Otherwise a split without images would be read until the limit is reached.
        """
        reasons = {}
        for number in map(int, numbers):
            why = self._why(number)
            if why is None:
                return
            reasons[number] = why
        if reasons and len(reasons) > self._limit:
            first = next(iter(reasons))
            raise UsageError(
                f"none of the first {len(reasons)} examples of {self._name} can be decoded, the "
                f"first is {self._split.describe(first)!r} ({reasons[first]}): are these images?"
            )

    def _why(self, number: int) -> str | None:
        """Returns the decoder's reason not to decode an example, None if it can be decoded.

        The pipeline's graph says that decoding failed, but not why. Only bad examples and the first
        ones of a stage are decoded again.
        """
        try:
            for example in self._split.read(
                tf.constant(number, tf.int64), tf.constant(1, tf.int64)
            ):
                decode_box(example["image"], whole_box)
        except tf.errors.OpError as error:
            from_pillow = re.search(r"ValueError: (.*)", error.message)
            return from_pillow[1] if from_pillow else reason(error)
        return None


def _batch_share(name: str, batch_size: int, share: Share) -> int:
    if batch_size % share.count:
        processes = f"the number of processes ({share.count})"
        raise UsageError(f"{name} must be a multiple of {processes}, got {batch_size}")
    return batch_size // share.count


def _read_once(split: Split, begin: int, end: int) -> tf.data.Dataset:
    """The records begin … end − 1 in order; their position is their number in the split."""
    if split.random_access:
        return tf.data.Dataset.range(begin, end).map(lambda i: {"record": i, "position": i})

    @tf.autograph.experimental.do_not_convert
    def read(first: tf.Tensor) -> tf.data.Dataset:
        count = tf.minimum(end - first, CHUNK)
        numbers = tf.data.Dataset.range(first, first + count)
        records = read_row(split, first, count).unbatch()
        return tf.data.Dataset.zip({"record": records, "position": numbers})

    return tf.data.Dataset.range(begin, end, CHUNK).interleave(
        read,
        cycle_length=_EVAL_READERS,
        block_length=CHUNK,
        num_parallel_calls=_EVAL_READERS,
        deterministic=True,
    )


def _batches(
    elements: tf.data.Dataset,
    prepare: Callable[[Example], Example],
    image_size: int,
    label_shape: tuple[int, ...],
    batch_size: int,
    threads: int | None,
) -> tf.data.Dataset:
    """Prepares elements, dictionaries with ``position``, in parallel and batches them in order.

    An example that cannot be prepared, for whatever reason, is zeros with mask 0.
    """
    threads = threads or os.cpu_count() or 1
    row_length = max(1, min(_ROW, _ROW_BYTES // (3 * image_size**2)))
    spec = {
        "image": tf.TensorSpec((image_size, image_size, 3), tf.uint8),
        "label": tf.TensorSpec(label_shape, tf.int32),
        "mask": tf.TensorSpec((), tf.float32),
    }

    def prepare_one(element: Example) -> Example:
        example = prepare(element)
        label = tf.cast(example["label"], tf.int32)
        return {"image": example["image"], "label": label, "mask": tf.ones([])}

    # A function of its own, which is traced when the first bad example is met.
    prepare_alone = tf.function(prepare_one, autograph=False)

    def one_by_one(names: list[str], *columns: tf.Tensor) -> list[tf.Tensor]:
        examples = []
        for values in zip(*columns, strict=True):
            try:
                example = prepare_alone(dict(zip(names, values, strict=True)))
            except tf.errors.OpError:
                example = {name: tf.zeros(x.shape, x.dtype) for name, x in spec.items()}
            examples.append([example[name] for name in spec])
        return [tf.stack(column) for column in zip(*examples, strict=True)]

    def prepare_all(row: Example) -> Example:
        examples = tf.map_fn(prepare_one, row, fn_output_signature=spec, parallel_iterations=1)
        return examples | {"position": row["position"]}

    def prepare_each(row: Example) -> tf.data.Dataset:
        # In Python, which can catch an exception.
        function = functools.partial(one_by_one, list(row))
        columns = tf.py_function(function, list(row.values()), [x.dtype for x in spec.values()])
        return tf.data.Dataset.from_tensors(
            {
                name: tf.ensure_shape(column, (None, *x.shape))
                for (name, x), column in zip(spec.items(), columns, strict=True)
            }
            | {"position": row["position"]}
        )

    # AutoGraph would find nothing to convert, and take its time.
    @tf.autograph.experimental.do_not_convert
    def prepare_row(row: Example) -> tf.data.Dataset:
        return attempt(prepare_all, row, prepare_each)

    options = tf.data.Options()
    # One row per thread: kernels that split up their work would only disturb the other threads, and
    # so would tf.data's own search for a number of threads.
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    return (
        elements.batch(row_length)
        # A row is a dataset of one element, and they stay in order. Within interleave, TensorFlow
        # sets up the functions once; within map, for every row.
        .interleave(
            prepare_row,
            cycle_length=threads * _ROWS_BEGUN,
            block_length=1,
            num_parallel_calls=threads * _ROWS_BEGUN,
            deterministic=True,
        )
        .rebatch(batch_size)
        .prefetch(_PREFETCH)
        .with_options(options)
    )
