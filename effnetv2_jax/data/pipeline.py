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
from typing import Any

import numpy as np
import tensorflow as tf

from effnetv2_jax.data import preprocess
from effnetv2_jax.data.autoaugment import auto_augment
from effnetv2_jax.data.bad_examples import BadExamples
from effnetv2_jax.data.order import Order, fold_in
from effnetv2_jax.data.randaugment import rand_augment
from effnetv2_jax.data.source import Example, Source, Split
from effnetv2_jax.errors import UsageError, unknown_name
from effnetv2_jax.preprocessing import WHOLE_IMAGE, Preprocessing
from effnetv2_jax.progressive import Stage

Batch = dict[str, np.ndarray]

# Batches that wait, made, for the device.
_PREFETCH = 2
# Images begun for every thread: they are handed on in order, and a thread that has finished a small
# one shall not wait for a large one before it.
_BEGUN = 4
# Examples in a row that one reader takes in an evaluation, and readers.
_EVAL_ROW = 256
_EVAL_READERS = 8


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to training images besides what the stage says.

    Attributes:
        name: a name in ``AUGMENTATIONS``.
        flip: left and right, with probability ½.
        num_layers: RandAugment operations in a row.
        translate_const: px that TranslateX and TranslateY move at magnitude 10; None takes the
            augmentation's own (RandAugment's is 100, AutoAugment's 250).
        cutout_const: half the side in px that Cutout covers at magnitude 10; None likewise (40 and
            100).
        area_range: of the crop over the image's area; None takes the family's.

    Raises:
        UsageError: for an unknown name.
    """

    name: str = "randaugment"
    flip: bool = True
    num_layers: int = 2
    translate_const: float | None = None
    cutout_const: float | None = None
    area_range: tuple[float, float] | None = None

    def __post_init__(self):
        if self.name not in AUGMENTATIONS:
            raise unknown_name("augmentation", self.name, AUGMENTATIONS)

    @property
    def constants(self) -> dict[str, Any]:
        """Those of translation and cutout that are not the augmentation's own."""
        constants = {"translate_const": self.translate_const, "cutout_const": self.cutout_const}
        return {name: value for name, value in constants.items() if value is not None}


def _randaugment(image, seed, stage: Stage, augmentation: Augmentation) -> tf.Tensor:
    return rand_augment(
        image,
        seed,
        magnitude=stage.randaugment_magnitude,
        num_layers=augmentation.num_layers,
        **augmentation.constants,
    )


def _autoaugment(image, seed, stage: Stage, augmentation: Augmentation) -> tf.Tensor:
    del stage  # the policy has magnitudes of its own
    return auto_augment(image, seed, **augmentation.constants)


AUGMENTATIONS: dict[str, Callable[..., tf.Tensor]] = {
    "randaugment": _randaugment,
    "autoaugment": _autoaugment,
    "none": lambda image, seed, stage, augmentation: image,
}
"""Of (image, seed, stage, augmentation) → image, all uint8 [size, size, 3]."""


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
        several labels, [batch, labels] filled up with −1, ``mask`` float32 [batch].

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
        epoch_seed = fold_in(tf.constant((seed, 1), tf.int64), example["position"] // examples.size)
        example_seed = fold_in(epoch_seed, example["id"])
        image = train_image(example["image"], example_seed, stage, preprocessing, augmentation)
        return _finished(example, image)

    dataset = _batched(elements.take(num_batches * batch_size), prepare, batch_size, share.threads)
    bad = BadExamples(examples, f"split {split!r} of {source.name}", max_bad_fraction)
    first = first_example + share.index
    positions = first + share.count * np.arange(num_batches * batch_size)
    return _in_place(
        dataset, positions, batch_size, lambda missing: bad.add(_located(order, missing))
    )


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
        As ``train_batches``; ``mask`` is 0 for padding.
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
    return _in_place(
        dataset, positions, batch_size, lambda missing: bad.add(missing[missing < end])
    )


def train_image(
    image: tf.Tensor,
    seed: tf.Tensor,
    stage: Stage,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
) -> tf.Tensor:
    """Crops, resizes, flips and augments.

    Args:
        image: an encoded string, or uint8 [height, width, 3].
        seed: int64 [2].
        stage: its image size and magnitude are used.
        preprocessing: the input family.
        augmentation: what is done.

    Returns:
        uint8 [size, size, 3].
    """
    box_seed, flip_seed, augment_seed = (fold_in(seed, i) for i in range(3))
    area_range = augmentation.area_range or preprocessing.area_range

    def choose_box(shape: tf.Tensor) -> tf.Tensor:
        if area_range == WHOLE_IMAGE:
            return preprocess.whole_box(shape)
        return preprocess.random_box(
            shape,
            box_seed,
            area_range=area_range,
            aspect_ratio_range=preprocessing.aspect_ratio_range,
            min_object_covered=preprocessing.min_object_covered,
        )

    image = preprocess.decode_box(image, choose_box, min_size=stage.image_size)
    image = preprocess.resize(image, stage.image_size, preprocessing.interpolation)
    if augmentation.flip:
        image = preprocess.random_flip(image, flip_seed)
    return AUGMENTATIONS[augmentation.name](image, augment_seed, stage, augmentation)


def eval_image(image: tf.Tensor, image_size: int, preprocessing: Preprocessing) -> tf.Tensor:
    """The central crop or the whole image, resized; as ``train_image`` without randomness."""

    def choose_box(shape: tf.Tensor) -> tf.Tensor:
        if image_size < preprocessing.center_crop_below:
            return preprocess.central_box(shape, image_size)
        return preprocess.whole_box(shape)

    # At full size, as published accuracies were measured.
    image = preprocess.decode_box(image, choose_box)
    return preprocess.resize(image, image_size, preprocessing.interpolation)


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


def _in_place(
    dataset: tf.data.Dataset,
    positions: np.ndarray,
    batch_size: int,
    report: Callable[[np.ndarray], None],
) -> Iterator[Batch]:
    """Puts examples where they belong in their batches; places whose example is missing get mask 0.

    Args:
        dataset: batches with ``position``, in order, some of them missing.
        positions: that should be there, in order; a multiple of batch_size.
        batch_size: of the result.
        report: is given the positions that are missing, if any.
    """
    batches = dataset.as_numpy_iterator()
    waiting = _empty(dataset.element_spec)
    for expected in positions.reshape(-1, batch_size):
        parts = [waiting]
        while sum(len(part["position"]) for part in parts) < batch_size and (
            batch := next(batches, None)
        ):
            parts.append(batch)
        parts = [part for part in parts if len(part["position"])] or [waiting]
        present = parts[0] if len(parts) == 1 else _concatenate(parts)
        here = np.searchsorted(present["position"], expected[-1], side="right")
        waiting = {name: array[here:] for name, array in present.items()}
        present = {name: array[:here] for name, array in present.items()}
        mask = np.isin(expected, present.pop("position"))
        if not mask.all():
            report(expected[~mask])
            present = {name: _scattered(array, mask) for name, array in present.items()}
        yield present | {"mask": mask.astype(np.float32)}


def _empty(element_spec: dict[str, tf.TensorSpec]) -> Batch:
    return {
        name: np.empty((0, *spec.shape[1:]), spec.dtype.as_numpy_dtype)
        for name, spec in element_spec.items()
    }


def _concatenate(batches: list[Batch]) -> Batch:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _scattered(rows: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Zeros with the rows where the mask is."""
    result = np.zeros((len(mask), *rows.shape[1:]), rows.dtype)
    result[mask] = rows
    return result
