"""What one image goes through, as tf.data calls it: decode a crop, resize, flip, augment."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from effnetv2_jax.data import decoding as preprocess
from effnetv2_jax.data.augment.autoaugment import auto_augment
from effnetv2_jax.data.augment.operations import noise_square
from effnetv2_jax.data.augment.randaugment import rand_augment
from effnetv2_jax.data.seeds import Use, for_use
from effnetv2_jax.preprocessing import WHOLE_IMAGE, Preprocessing
from effnetv2_jax.progressive import Stage
from effnetv2_jax.runtime.errors import unknown_name


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


def _cutout(image, seed, stage: Stage, augmentation: Augmentation) -> tf.Tensor:
    del augmentation
    return noise_square(image, seed, half_side=stage.image_size // 4)


AUGMENTATIONS: dict[str, Callable[..., tf.Tensor]] = {
    "randaugment": _randaugment,
    "autoaugment": _autoaugment,
    "cutout": _cutout,
    "none": lambda image, seed, stage, augmentation: image,
}
"""Of (image, seed, stage, augmentation) → image, all uint8 [size, size, 3]."""


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
        seed: int64 [2], of ``make_seed``.
        stage: its image size and magnitude are used.
        preprocessing: the input family.
        augmentation: what is done.

    Returns:
        uint8 [size, size, 3].
    """
    image = random_crop(image, seed, stage, preprocessing, augmentation)
    image = preprocess.resize(image, stage.image_size, preprocessing.interpolation)
    return flip_and_augment(image, seed, stage, augmentation)


def random_crop(
    image: tf.Tensor,
    seed: tf.Tensor,
    stage: Stage,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
) -> tf.Tensor:
    """The first step of ``train_image``: decodes a random crop, uint8 [height, width, 3]."""

    def choose_box(shape: tf.Tensor) -> preprocess.Box:
        return crop_box(shape, seed, preprocessing, augmentation)

    return preprocess.decode_box(image, choose_box, min_size=stage.image_size)


def crop_box(
    shape: tf.Tensor, seed: tf.Tensor, preprocessing: Preprocessing, augmentation: Augmentation
) -> preprocess.Box:
    """The crop that ``train_image`` decodes of an image of ``shape``, int32 [2]."""
    area_range = augmentation.area_range or preprocessing.area_range
    if area_range == WHOLE_IMAGE:
        return preprocess.whole_box(shape)
    return preprocess.random_box(
        shape,
        for_use(seed, Use.CROP),
        area_range=area_range,
        aspect_ratio_range=preprocessing.aspect_ratio_range,
        min_object_covered=preprocessing.min_object_covered,
    )


def flip_and_augment(
    image: tf.Tensor, seed: tf.Tensor, stage: Stage, augmentation: Augmentation
) -> tf.Tensor:
    """The last step of ``train_image``, of and to uint8 [size, size, 3]."""
    if augmentation.flip:
        image = preprocess.random_flip(image, for_use(seed, Use.FLIP))
    augment = AUGMENTATIONS[augmentation.name]
    return augment(image, for_use(seed, Use.AUGMENT), stage, augmentation)


def eval_image(image: tf.Tensor, image_size: int, preprocessing: Preprocessing) -> tf.Tensor:
    """The central crop or the whole image, resized; as ``train_image`` without randomness."""
    crops = image_size < preprocessing.center_crop_below
    margin = preprocessing.crop_margin if crops else None
    if preprocessing.antialias:
        image = preprocess.decode_box(image, preprocess.whole_box)
        return preprocess.resize_as_pillow(image, image_size, preprocessing.interpolation, margin)

    def choose_box(shape: tf.Tensor) -> preprocess.Box:
        if margin is None:
            return preprocess.whole_box(shape)
        return preprocess.central_box(shape, image_size, margin)

    # At full size, as published accuracies were measured.
    image = preprocess.decode_box(image, choose_box)
    return preprocess.resize(image, image_size, preprocessing.interpolation)
