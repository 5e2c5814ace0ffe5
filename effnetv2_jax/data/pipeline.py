"""Stage → batches: a fresh tf.data graph for every stage of progressive learning.

What a run sees is a pure function of (seed, epoch, example): every epoch is a seeded permutation of
the split, and every example draws its crop, flip and augmentation from its own seed. A pipeline can
therefore start anywhere, and a resumed run sees what the uninterrupted one would have seen.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from effnetv2_jax.data import preprocess
from effnetv2_jax.data.autoaugment import auto_augment
from effnetv2_jax.data.randaugment import rand_augment
from effnetv2_jax.data.sources import Source
from effnetv2_jax.errors import UsageError, unknown_name
from effnetv2_jax.preprocessing import WHOLE_IMAGE, Preprocessing
from effnetv2_jax.progressive import Stage

Batch = dict[str, np.ndarray]

# A permutation of a whole epoch where it fits, of a moving window where it does not.
_SHUFFLE_BUFFER = 100_000


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
    def constants(self) -> dict[str, float]:
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
) -> Iterator[Batch]:
    """Yields the training batches of a stage.

    Args:
        source: the data set.
        split: of it, e.g. ``train``.
        stage: its image size, magnitude and batch size are used.
        first_example: how many examples of the endless stream of epochs came before.
        num_batches: after which the iterator ends.
        seed: of the run.
        preprocessing: the input family.
        augmentation: crop, flip, and RandAugment or AutoAugment.

    Yields:
        ``image`` uint8 [batch, size, size, 3], ``label`` int32 [batch], ``mask`` float32 [batch].

    Raises:
        UsageError: for a split with fewer examples than a batch.
    """
    epoch_size = source.num_examples(split)
    if epoch_size < stage.batch_size:
        raise UsageError(
            f"batch_size must be at most the {epoch_size} examples of split {split!r} of "
            f"{source.name}, got {stage.batch_size}"
        )
    examples = source.read(split)

    def shuffled(epoch: tf.Tensor) -> tf.data.Dataset:
        epoch_seed = _fold_in(tf.constant((seed, 0), tf.int64), epoch)
        order_seed = tf.random.stateless_uniform((), epoch_seed, None, None, tf.int64)
        return examples.shuffle(
            min(_SHUFFLE_BUFFER, epoch_size), seed=order_seed, reshuffle_each_iteration=False
        ).map(lambda example: example | {"epoch": epoch})

    def prepare(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        example_seed = _fold_in(
            _fold_in(tf.constant((seed, 1), tf.int64), example["epoch"]), example["id"]
        )
        return {
            "image": _train_image(
                example["image"], example_seed, stage, preprocessing, augmentation
            ),
            "label": tf.cast(example["label"], tf.int32),
            "mask": tf.ones((), tf.float32),
        }

    first_epoch, skipped = divmod(first_example, epoch_size)
    dataset = (
        tf.data.Dataset.counter(start=first_epoch)
        .flat_map(shuffled)
        .skip(skipped)  # before anything is decoded
        .map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(stage.batch_size, drop_remainder=True)
        .take(num_batches)
        .prefetch(tf.data.AUTOTUNE)
    )
    return dataset.as_numpy_iterator()


def eval_batches(
    source: Source,
    split: str,
    *,
    image_size: int,
    batch_size: int,
    preprocessing: Preprocessing,
) -> Iterator[Batch]:
    """Yields every example of a split once; the last batch is padded and its mask says where.

    Args:
        source: the data set.
        split: of it, e.g. ``test``.
        image_size: side in px.
        batch_size: images a batch.
        preprocessing: the input family.

    Yields:
        As ``train_batches``; ``mask`` is 0 for padding.
    """

    def prepare(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        image = preprocess.decode(example["image"])
        if image_size < preprocessing.center_crop_below:
            image = preprocess.center_crop(image, image_size)
        return {
            "image": preprocess.resize(image, image_size, preprocessing.interpolation),
            "label": tf.cast(example["label"], tf.int32),
            "mask": tf.ones((), tf.float32),
        }

    dataset = (
        source.read(split)
        .map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )
    for batch in dataset.as_numpy_iterator():
        missing = batch_size - len(batch["mask"])
        yield {
            name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
            for name, array in batch.items()
        }


def _train_image(
    image: tf.Tensor,
    seed: tf.Tensor,
    stage: Stage,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
) -> tf.Tensor:
    crop_seed, flip_seed, augment_seed = (_fold_in(seed, i) for i in range(3))
    image = preprocess.decode(image)
    area_range = augmentation.area_range or preprocessing.area_range
    if area_range != WHOLE_IMAGE:
        image = preprocess.random_crop(
            image,
            crop_seed,
            area_range=area_range,
            aspect_ratio_range=preprocessing.aspect_ratio_range,
            min_object_covered=preprocessing.min_object_covered,
        )
    image = preprocess.resize(image, stage.image_size, preprocessing.interpolation)
    if augmentation.flip:
        image = preprocess.random_flip(image, flip_seed)
    return AUGMENTATIONS[augmentation.name](image, augment_seed, stage, augmentation)


def _fold_in(seed: tf.Tensor, data: tf.Tensor | int) -> tf.Tensor:
    """A new seed int64 [2] out of a seed and a number."""
    return tf.random.experimental.stateless_fold_in(seed, tf.cast(data, tf.int64))
