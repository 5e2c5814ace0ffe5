"""Stage → batches: a fresh tf.data graph for every stage of progressive learning.

What a run sees is a pure function of (seed, position in the stream of epochs): `order` says which
example stands there, and every example draws crop, flip and augmentation from a seed of its own.
A pipeline can therefore start anywhere, a resumed run sees what the uninterrupted one would have
seen, and so does a run on another number of processes or threads.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from effnetv2_jax.data.bad_examples import BadExamples
from effnetv2_jax.data.gaps import Batch, in_place
from effnetv2_jax.data.images import Augmentation, eval_image, train_image
from effnetv2_jax.data.order import Order
from effnetv2_jax.data.seeds import make_seed
from effnetv2_jax.data.sources.base import Example, Source, Split
from effnetv2_jax.preprocessing import Preprocessing
from effnetv2_jax.progressive import Stage
from effnetv2_jax.runtime.errors import UsageError

# Batches that wait, made, for the device.
_PREFETCH = 2
# Images begun for every thread: they are handed on in order, and a thread that has finished a small
# one shall not wait for a large one before it.
_BEGUN = 4
# Examples in a row that one reader takes in an evaluation, and readers.
_EVAL_ROW = 256
_EVAL_READERS = 8
# Examples one of which must be good for a stage to begin.
_PROBED = 8


@dataclasses.dataclass(frozen=True)
class Share:
    """Which part of every batch this process reads.

    Attributes:
        index: of the process.
        count: of processes.
        threads: that prepare images; None for one a core.
    """

    index: int = 0
    count: int = 1
    threads: int | None = None


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
    max_bad_fraction: float = 0.001,
    share: Share = Share(),
) -> Iterator[Batch]:
    """Yields this process's part of a stage's training batches.

    An example that cannot be decoded keeps its place, as zeros with mask 0.

    Args:
        source: the data set.
        split: of it, e.g. ``train``.
        stage: its image size, magnitude and batch size (over all processes) are used.
        first_example: how many examples of the endless stream of epochs came before, over all
            processes.
        num_batches: after which the iterator ends.
        seed: of the run.
        preprocessing: the input family.
        augmentation: crop, flip, and RandAugment or AutoAugment.
        max_bad_fraction: of the split's examples that may be impossible to decode.
        share: which process this is.

    Yields:
        ``image`` uint8 [batch, size, size, 3], ``label`` int32 [batch] or, where examples have
        several labels, [batch, labels] filled up with −1, ``mask`` float32 [batch], and ``index``
        int32 [batch], the number of each example in the batch of all processes.

    Raises:
        UsageError: for a split with fewer examples than a batch, a batch that the processes do not
            divide, and, while iterating, for too many bad examples.
    """
    examples = source.split(split)
    if examples.size < stage.batch_size:
        raise UsageError(
            f"batch_size must be at most the {examples.size} examples of split {split!r} of "
            f"{source.name}, got {stage.batch_size}"
        )
    order = Order(examples, seed)
    elements, fetch = order.read(first_example, share.index, share.count)
    batch_size = _batch_share("batch_size", stage.batch_size, share)

    def prepare(element) -> Example:
        example = fetch(element)
        image_seed = example_seed(seed, example, examples.size)
        image = train_image(example["image"], image_seed, stage, preprocessing, augmentation)
        return _finished(example, image)

    dataset = _batched(elements.take(num_batches * batch_size), prepare, batch_size, share.threads)
    bad = BadExamples(examples, f"split {split!r} of {source.name}", max_bad_fraction)
    first = first_example + share.index
    positions = first + share.count * np.arange(num_batches * batch_size)
    bad.refuse_if_all(_located(order, positions[:_PROBED]))
    batches = in_place(
        dataset, positions, batch_size, lambda missing: bad.add(_located(order, missing))
    )
    index = np.arange(share.index, stage.batch_size, share.count, dtype=np.int32)
    return (batch | {"index": index} for batch in batches)


def examples_at(
    split: Split, seed: int, *, first_example: int, count: int
) -> list[tuple[int, str]]:
    """The examples of a training batch, without reading them.

    Args:
        split: of a source.
        seed: of the run.
        first_example: as for ``train_batches``.
        count: of the batch, over all processes.

    Returns:
        Of each, in the order of the stream: its number in the split, and what a person needs to
        find it.
    """
    numbers = _located(Order(split, seed), np.arange(first_example, first_example + count))
    return [(number, split.describe(number)) for number in numbers.tolist()]


def example_seed(seed: int, example: Example, split_size: int) -> tf.Tensor:
    """What an example's random numbers come from: (seed of the run, epoch, example); int64 [2].

    Args:
        seed: of the run.
        example: from ``Order.read``.
        split_size: examples an epoch.
    """
    return make_seed(seed, example["position"] // split_size, example["id"])


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
    """Yields every example of a split once; the last batches are padded and their mask says where.

    Args:
        source: the data set.
        split: of it, e.g. ``test``.
        image_size: side in px.
        batch_size: images a batch, over all processes.
        preprocessing: the input family.
        max_bad_fraction: of the split's examples that may be impossible to decode.
        share: which process this is; all have the same number of batches.

    Yields:
        As ``train_batches``, but for ``index``; ``mask`` is 0 for padding.
    """
    examples = source.split(split)
    batch_size = _batch_share("eval_batch_size", batch_size, share)
    begin, end = (examples.size * i // share.count for i in (share.index, share.index + 1))
    largest_share = math.ceil(examples.size / share.count)
    num_batches = math.ceil(largest_share / batch_size)

    def prepare(example: Example) -> Example:
        return _finished(example, eval_image(example["image"], image_size, preprocessing))

    elements, fetch = _read_once(examples, begin, end)
    dataset = _batched(elements, lambda x: prepare(fetch(x)), batch_size, share.threads)
    bad = BadExamples(examples, f"split {split!r} of {source.name}", max_bad_fraction)
    positions = np.arange(begin, begin + num_batches * batch_size)
    return in_place(dataset, positions, batch_size, lambda missing: bad.add(missing[missing < end]))


def _batch_share(name: str, batch_size: int, share: Share) -> int:
    if batch_size % share.count:
        raise UsageError(
            f"{name} must be a multiple of the number of processes ({share.count}), "
            f"got {batch_size}"
        )
    return batch_size // share.count


def _finished(example: Example, image: tf.Tensor) -> Example:
    return {
        "image": image,
        "label": tf.cast(example["label"], tf.int32),
        "position": example["position"],
    }


def _read_once(
    split: Split, begin: int, end: int
) -> tuple[tf.data.Dataset, Callable[..., Example]]:
    """The examples begin … end − 1 in order, as ``Order.read`` gives them."""
    get = split.get
    if get is not None:
        return tf.data.Dataset.range(begin, end), lambda i: get(i) | {"position": i}

    def read_row(first: tf.Tensor) -> tf.data.Dataset:
        count = tf.minimum(end - first, _EVAL_ROW)
        numbers = tf.data.Dataset.range(first, first + count)
        return tf.data.Dataset.zip(numbers, split.read(first, count)).map(
            lambda number, example: example | {"position": number}
        )

    rows = tf.data.Dataset.range(begin, end, _EVAL_ROW).interleave(
        read_row,
        cycle_length=_EVAL_READERS,
        block_length=_EVAL_ROW,
        num_parallel_calls=_EVAL_READERS,
        deterministic=True,
    )
    return rows, lambda example: example


def _batched(
    elements: tf.data.Dataset, prepare: Callable, batch_size: int, threads: int | None
) -> tf.data.Dataset:
    """Prepares in parallel, leaves out what fails, and batches."""
    threads = threads or os.cpu_count() or 1
    options = tf.data.Options()
    # One image a thread: kernels that split their work up again would only get in its way, and so
    # would tf.data's own search for the number of threads.
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    return (
        elements.map(
            tf.autograph.experimental.do_not_convert(prepare),
            num_parallel_calls=threads * _BEGUN,
            deterministic=True,
        )
        .ignore_errors()
        .batch(batch_size)
        .prefetch(_PREFETCH)
        .with_options(options)
    )


def _located(order: Order, positions: np.ndarray) -> np.ndarray:
    return np.array([order.locate(position).numpy() for position in positions.tolist()])
