"""The transform in NumPy and Pillow against the TensorFlow pipeline, to one level of 255."""

import dataclasses
import io

import numpy as np
import pytest
import skimage.data
import tensorflow as tf
from PIL import Image

from effnetv2_jax.data import images
from effnetv2_jax.models import get_spec
from effnetv2_jax.preprocessing import PREPROCESSING, get_preprocessing
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training.step import normalize
from effnetv2_jax.transforms import Transform, make_transform
from effnetv2_jax.weights import timm

PHOTOGRAPHS = {
    "cat": skimage.data.chelsea(),
    "portrait": skimage.data.astronaut()[:, 56:409],
    "coffee": skimage.data.coffee(),
    "tiny": skimage.data.rocket()[200:217, 300:323],
    "line": skimage.data.coffee()[:1],
}
# Each way to make images square that timm's networks know, once; and each family.
TIMM = {
    (x.crop_mode, x.interpolation, x.crop < 1): x
    for tags in timm.networks().values()
    for x in sorted(tags.values(), key=lambda x: -x.eval_size)
}
CASES = [
    *((name, 48) for name in PREPROCESSING),
    ("v2", 320),
    ("vit", 320),
    *(
        (f"torch,interpolation={x.interpolation},crop={x.crop},crop_mode={x.crop_mode}", 96)
        for x in TIMM.values()
    ),
    ("torch,crop=1.0,crop_mode=border,interpolation=bilinear", 161),
    ("torch,crop=0.8,crop_mode=border", 130),
    ("torch,crop=0.8,crop_mode=squash,interpolation=bilinear", 130),
]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_pixels_are_the_pipelines(name, size):
    family = get_preprocessing(name)
    for photograph in PHOTOGRAPHS.values():
        expected = images.eval_image(tf.constant(photograph), size, family).numpy()
        found = Transform(family, size).pixels(photograph)
        assert found.dtype == np.uint8 and found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= 1
        # Halves are rounded up or down by the last bit of a sum.
        assert np.mean(found != expected) <= 0.05


def test_a_file_becomes_what_the_network_sees(tmp_path):
    spec = dataclasses.replace(get_spec("efficientnet-b0"), eval_size=64)
    transform = make_transform(spec)
    for format in ("JPEG", "PNG"):
        path = tmp_path / f"cat.{format}"
        Image.fromarray(PHOTOGRAPHS["cat"]).save(path, format)
        family = PREPROCESSING["v1"]
        pixels = images.eval_image(tf.constant(path.read_bytes()), 64, family).numpy()
        expected = normalize(pixels, family.mean, family.std)
        for image in (path, str(path), path.read_bytes(), Image.open(path)):
            found = transform(image)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, atol=1.01 / min(family.std))
    assert make_transform(spec, 32)(PHOTOGRAPHS["cat"]).shape == (32, 32, 3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16"])
def test_every_kind_of_image_becomes_rgb(mode):
    pixels = PHOTOGRAPHS["cat"]
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) << 8)
    else:
        image = Image.fromarray(pixels).convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    family = PREPROCESSING["torch"]
    expected = images.eval_image(tf.constant(file.getvalue()), 64, family).numpy()
    found = Transform(family, 64).pixels(file.getvalue())
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_what_is_no_image_is_one_sentence(tmp_path):
    transform = make_transform(get_spec("efficientnetv2-tiny"))
    (tmp_path / "text.jpg").write_text("no image")
    for image, message in (
        (tmp_path / "text.jpg", "text.jpg' cannot be read as an image"),
        (tmp_path / "missing.jpg", "missing.jpg' cannot be read as an image"),
        (b"", "these bytes cannot be read as an image"),
        (np.zeros((4, 4), np.uint8), r"must be uint8 \[height, width, 3\], got uint8 \[4, 4\]"),
        (np.zeros((4, 4, 3)), "got float64"),
    ):
        with pytest.raises(UsageError, match=message):
            transform(image)
    grey = dataclasses.replace(get_spec("efficientnetv2-tiny"), in_channels=1)
    with pytest.raises(UsageError, match="of 3 channels, but efficientnetv2-tiny has in_channels="):
        make_transform(grey)
    with pytest.raises(UsageError, match="image_size must be at least 1 px, got 0"):
        make_transform(get_spec("efficientnetv2-tiny"), 0)
