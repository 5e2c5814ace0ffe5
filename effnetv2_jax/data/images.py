"""The steps that one image goes through: decode a crop, resize, flip, augment."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from effnetv2_jax.data import decoding
from effnetv2_jax.data.augment.autoaugment import auto_augment
from effnetv2_jax.data.augment.operations import noise_square
from effnetv2_jax.data.augment.randaugment import rand_augment
from effnetv2_jax.data.order import Use, for_use
from effnetv2_jax.preprocessing import WHOLE_IMAGE, Preprocessing
from effnetv2_jax.progressive import Stage
from effnetv2_jax.runtime.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The augmentation of training images, apart from what changes from stage to stage.

    Attributes:
        name: A name in ``AUGMENTATIONS``.
        flip: Flips left and right with probability ½ if set.
        num_layers: The number of RandAugment operations in a row.
        translate_const: The distance in px that TranslateX and TranslateY move an image at
            magnitude 10. None means 100 for RandAugment and 250 for AutoAugment.
        cutout_const: Half the side in px of the square that Cutout covers at magnitude 10. None
            means 40 for RandAugment and 100 for AutoAugment.
        area_range: The smallest and largest area of the crop, divided by the image's area. None
            takes the input family's.

    Raises:
        UsageError: For an unknown name.
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
        """The arguments for translation and cutout that do not have their default."""
        constants = {"translate_const": self.translate_const, "cutout_const": self.cutout_const}
        return {name: value for name, value in constants.items() if value is not None}


AUGMENTATIONS: dict[str, Callable[..., tf.Tensor]] = {
    "randaugment": lambda image, seed, stage, augmentation: rand_augment(
        image,
        seed,
        magnitude=stage.randaugment_magnitude,
        num_layers=augmentation.num_layers,
        **augmentation.constants,
    ),
    "autoaugment": lambda image, seed, stage, augmentation: auto_augment(
        image, seed, **augmentation.constants
    ),
    "cutout": lambda image, seed, stage, augmentation: noise_square(
        image, seed, half_side=stage.image_size // 4
    ),
    "none": lambda image, seed, stage, augmentation: image,
}
"""Functions of (image, seed, stage, augmentation) that return the augmented image.

Images are uint8 [size, size, 3]. A new augmentation is a function and a line here.
"""


def train_image(
    image: tf.Tensor,
    seed: tf.Tensor,
    stage: Stage,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
) -> tf.Tensor:
    """Crops, resizes, flips and augments to uint8 [size, size, 3].

    Args:
        image: An encoded string, or uint8 [height, width, 3].
        seed: The example's seed from ``make_seed``, int64 [2].
        stage: The stage, of which image size and magnitude are used.
        preprocessing: The input family.
        augmentation: The augmentation.
    """
    image = random_crop(image, seed, stage, preprocessing, augmentation)
    image = decoding.resize(image, stage.image_size, preprocessing.interpolation)
    return flip_and_augment(image, seed, stage, augmentation)


def random_crop(
    image: tf.Tensor,
    seed: tf.Tensor,
    stage: Stage,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
) -> tf.Tensor:
    """Decodes a random crop, uint8 [height, width, 3]: the first step of ``train_image``."""
    box = functools.partial(
        crop_box, seed=seed, preprocessing=preprocessing, augmentation=augmentation
    )
    return decoding.decode_box(
        image, box, min_size=stage.image_size, exif_orientation=preprocessing.exif_orientation
    )


def crop_box(
    shape: tf.Tensor, seed: tf.Tensor, preprocessing: Preprocessing, augmentation: Augmentation
) -> decoding.Box:
    """Returns the crop that ``train_image`` decodes of an image of ``shape``, int32 [2]."""
    area_range = augmentation.area_range or preprocessing.area_range
    if area_range == WHOLE_IMAGE:
        return decoding.whole_box(shape)
    return decoding.random_box(
        shape,
        for_use(seed, Use.CROP),
        area_range=area_range,
        aspect_ratio_range=preprocessing.aspect_ratio_range,
        min_object_covered=preprocessing.min_object_covered,
    )


def flip_and_augment(
    image: tf.Tensor, seed: tf.Tensor, stage: Stage, augmentation: Augmentation
) -> tf.Tensor:
    """Flips and augments an image, uint8 [size, size, 3]: the last step of ``train_image``."""
    if augmentation.flip:
        image = decoding.random_flip(image, for_use(seed, Use.FLIP))
    augment = AUGMENTATIONS[augmentation.name]
    return augment(image, for_use(seed, Use.AUGMENT), stage, augmentation)


def eval_image(image: tf.Tensor, image_size: int, preprocessing: Preprocessing) -> tf.Tensor:
    """Resizes the central crop or the whole image to uint8 [image_size, image_size, 3].

    Args:
        image: An encoded string, or uint8 [height, width, 3].
        image_size: The side of the result in px.
        preprocessing: The input family, which decides between the crop and the whole image.
    """
    mode, side = preprocessing.evaluation(image_size)
    turn = preprocessing.exif_orientation
    if preprocessing.antialias:
        image = decoding.decode_box(image, decoding.whole_box, exif_orientation=turn)
        return decoding.resize_as_pillow(
            image, image_size, preprocessing.interpolation, mode, side, fill=preprocessing.mean
        )

    box: Callable[[tf.Tensor], decoding.Box] = decoding.whole_box
    if mode == "center":
        margin = side - image_size
        box = functools.partial(decoding.central_box, image_size=image_size, margin=margin)
    # Decoded at full size, as published accuracies were measured.
    image = decoding.decode_box(image, box, exif_orientation=turn)
    return decoding.resize(image, image_size, preprocessing.interpolation)
