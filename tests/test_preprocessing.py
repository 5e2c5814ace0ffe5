"""Names of preprocessing, with changes."""

import dataclasses

import pytest

from effnetv2_jax.preprocessing import PREPROCESSING, get_preprocessing, name_preprocessing
from effnetv2_jax.runtime.errors import UsageError


def test_a_name_may_change_its_family():
    family = get_preprocessing("torch,mean=1/2/3,std=4.5,interpolation=bilinear,crop=0.9")
    expected = dataclasses.replace(
        PREPROCESSING["torch"],
        name="torch,mean=1/2/3,std=4.5,interpolation=bilinear,crop=0.9",
        mean=(1.0, 2.0, 3.0),
        std=(4.5, 4.5, 4.5),
        interpolation="bilinear",
        crop=0.9,
    )
    assert family == expected
    assert get_preprocessing("v1,mean=0").mean == (0, 0, 0)


@pytest.mark.parametrize(
    ("name", "size", "evaluation"),
    [
        ("v2", 224, ("center", 256)),
        ("v2", 320, ("squash", 320)),
        ("finetune", 224, ("squash", 224)),
        ("v1", 600, ("center", 632)),
        ("vit", 224, ("center", 248)),
        # The short side, not the whole image squashed.
        ("vit", 384, ("center", 384)),
        ("torch,crop=0.95", 416, ("center", 437)),
        ("torch,crop=0.9,crop_mode=squash", 300, ("squash", 333)),
    ],
)
def test_how_evaluation_makes_images_square(name, size, evaluation):
    assert get_preprocessing(name).evaluation(size) == evaluation


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tor", "unknown preprocessing 'tor': did you mean torch"),
        ("torch,croup=1", "unknown change of preprocessing 'torch,croup=1': 'croup': did you"),
        ("torch,", "unknown change of preprocessing 'torch,': ''"),
        ("torch,crop=1.1", "must be above 0 and at most 1, got '1.1'"),
        ("torch,crop=nan", "must be above 0 and at most 1, got 'nan'"),
        ("torch,mean=1/2", "must be one number, or three with / between them, got '1/2'"),
        ("torch,std=0", "must be one number above 0, or three with / between them, got '0'"),
        ("torch,std=inf", "must be one number above 0"),
        ("torch,crop_mode=round", "must be center or squash or border, got 'round'"),
        ("torch,interpolation=", "must be bilinear or bicubic, got ''"),
        ("v1,crop=0.9", "preprocessing 'v1' takes no crop: vit, deit, torch"),
    ],
)  # fmt: skip
def test_what_a_name_must_not_say(name, message):
    with pytest.raises(UsageError, match=message):
        get_preprocessing(name)


def test_the_shortest_name_is_found():
    half = {"mean": (127.5,) * 3, "std": (127.5,) * 3}
    assert name_preprocessing(("deit", "vit"), half) == "vit"
    assert name_preprocessing(("torch",), half) == "torch,mean=127.5,std=127.5"
    crop = {"crop": 0.9, "crop_mode": "center"}
    assert name_preprocessing(("deit",), crop, 224) == "deit"
    assert name_preprocessing(("deit",), crop, 384) == "deit,crop=0.9"
    assert name_preprocessing(("deit",), crop) == "deit,crop=0.9"
    third = 255 / 3
    name = name_preprocessing(("v1",), {"mean": (third, third, 1.0)})
    assert get_preprocessing(name).mean == (third, third, 1.0)
