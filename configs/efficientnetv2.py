"""The paper's ImageNet recipes: ``configs/efficientnetv2.py:VARIANT`` or ``:VARIANT,official``.

VARIANT is s, m, l, xl, b0, b1, b2 or b3. By default the schedule is the paper's (Table 6): images
grow from 128 to 300 or 380 px, and RandAugment, Mixup and dropout grow with them. With ``official``
it is the schedule of the published code: 171, 214, 257 and 300 px for S, other magnitudes, and
constant dropout. B0 to B3 have AutoAugment instead of RandAugment in both.

Command:   python -m effnetv2_jax.train --config=configs/efficientnetv2.py:s --workdir=DIR
           --config.data.name=DATA (the default, synthetic, only shows that the recipe runs)
Hardware:  32 TPUv3 cores (v3-32), 128 images a core; 7.1 h for S, 13 h for M, 24 h for L (Table 7)
Result:    published top-1 on ImageNet: 83.9 % (S), 85.1 % (M), 85.7 % (L) (Table 7); 78.7 % (B0),
           79.8 % (B1), 80.5 % (B2), 82.1 % (B3) without progressive learning. XL was trained on
           ImageNet21k. The official code with its defaults gave a user 83.46 % (S), 84.46 % (M).
"""

import dataclasses

import ml_collections

from configs import common


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The fields that differ by variant; ranges are (first stage, last stage).

    Attributes:
        schedule: A name in effnetv2_jax.progressive.SCHEDULES.
        image_size: The side of the training images in px.
        randaugment_magnitude: The magnitude of RandAugment.
        mixup_alpha: The parameter of Mixup's Beta distribution; 0 turns Mixup off.
        cutmix_alpha: The parameter of CutMix's Beta distribution; 0 turns CutMix off.
        dropout_rate: The dropout rate before the classifier.
        eval_image_size: The side of the evaluation images in px.
    """

    schedule: str
    image_size: tuple[int, int]
    randaugment_magnitude: tuple[float, float]
    mixup_alpha: tuple[float, float]
    cutmix_alpha: tuple[float, float]
    dropout_rate: tuple[float, float]
    eval_image_size: int


_NONE = (0.0, 0.0)


def _fixed_b(train_size: int, eval_size: int, dropout_rate: float) -> Recipe:
    # The paper trains B0 to B3 without progressive learning (Table 11).
    return Recipe(
        schedule="fixed",
        image_size=(train_size, train_size),
        randaugment_magnitude=_NONE,
        mixup_alpha=_NONE,
        cutmix_alpha=_NONE,
        dropout_rate=(dropout_rate, dropout_rate),
        eval_image_size=eval_size,
    )


# Table 6, which lacks XL; XL gets the regularisation of L.
PAPER = {
    "s": Recipe("paper", (128, 300), (5.0, 15.0), _NONE, _NONE, (0.1, 0.3), 384),
    "m": Recipe("paper", (128, 380), (5.0, 20.0), (0.0, 0.2), _NONE, (0.1, 0.4), 480),
    "l": Recipe("paper", (128, 380), (5.0, 25.0), (0.0, 0.5), _NONE, (0.1, 0.5), 480),
    "xl": Recipe("paper", (128, 380), (5.0, 25.0), (0.0, 0.5), _NONE, (0.1, 0.5), 512),
    "b0": _fixed_b(192, 224, 0.2),
    "b1": _fixed_b(192, 240, 0.2),
    "b2": _fixed_b(208, 260, 0.3),
    "b3": _fixed_b(240, 300, 0.3),
}

# effnetv2_configs.py of google/automl, where CutMix has the alpha of Mixup.
OFFICIAL = {
    "s": Recipe("official", (128, 300), (5.0, 10.0), _NONE, _NONE, (0.2, 0.2), 384),
    "m": Recipe("official", (128, 384), (5.0, 15.0), (0.0, 0.2), (0.0, 0.2), (0.3, 0.3), 480),
    "l": Recipe("official", (128, 384), (5.0, 20.0), (0.0, 0.5), (0.0, 0.5), (0.4, 0.4), 480),
    "xl": Recipe("official", (128, 384), (5.0, 20.0), (0.0, 0.5), (0.0, 0.5), (0.4, 0.4), 512),
    "b0": Recipe("official", (128, 192), _NONE, _NONE, _NONE, (0.2, 0.2), 224),
    "b1": Recipe("official", (128, 192), _NONE, _NONE, _NONE, (0.2, 0.2), 240),
    "b2": Recipe("official", (128, 208), _NONE, _NONE, _NONE, (0.3, 0.3), 260),
    "b3": Recipe("official", (128, 240), _NONE, _NONE, _NONE, (0.3, 0.3), 300),
}

# The paper trains these with V1's augmentation, for a fair comparison with V1.
AUTOAUGMENTED = ("b0", "b1", "b2", "b3")

RECIPES = {"": PAPER, "official": OFFICIAL}


def get_config(arg: str = "s") -> ml_collections.ConfigDict:
    """Returns the recipe of ``VARIANT`` or ``VARIANT,official``."""
    variant, _, kind = arg.partition(",")
    if kind not in RECIPES or variant not in PAPER:
        raise ValueError(
            f"configs/efficientnetv2.py takes :VARIANT or :VARIANT,official with VARIANT one of "
            f"{', '.join(PAPER)}, got {arg!r}"
        )
    recipe = RECIPES[kind][variant]
    config = common.get_config()
    config.model.name = f"efficientnetv2-{variant}"
    config.schedule.name = recipe.schedule
    config.schedule.num_stages = 1 if recipe.schedule == "fixed" else 4
    config.schedule.image_size = recipe.image_size
    config.schedule.randaugment_magnitude = recipe.randaugment_magnitude
    config.schedule.mixup_alpha = recipe.mixup_alpha
    config.schedule.cutmix_alpha = recipe.cutmix_alpha
    config.schedule.dropout_rate = recipe.dropout_rate
    config.eval_image_size = recipe.eval_image_size
    if variant in AUTOAUGMENTED:
        config.data.augmentation = "autoaugment"
    if kind == "official":
        # base_config of the official hparams; the paper says 0.99.
        config.model.bn_momentum = 0.9
    return config
