"""Evaluation images of networks trained in PyTorch against Pillow, torchvision and timm.

timm's own images are in ``timm_images.npz``, which ``tests/golden/make_timm_networks.py`` wrote.
"""

import io
import pathlib

import numpy as np
import pytest
import skimage.data
import tensorflow as tf
from PIL import Image

from effnetv2_jax.data import images
from effnetv2_jax.preprocessing import PREPROCESSING, get_preprocessing
from effnetv2_jax.training.step import normalize
from effnetv2_jax.weights import timm
from tests.golden.make_timm_networks import MORE, photographs, sample

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "timm_images.npz"

PHOTOGRAPHS = {
    "cat": Image.fromarray(skimage.data.chelsea()),  # 451 × 300 px
    "portrait": Image.fromarray(skimage.data.astronaut()).crop((56, 0, 409, 512)),
    "small": Image.fromarray(skimage.data.coffee()).resize((101, 67)),
}
# Family → Pillow's filter and the short side that torchvision and timm resize to, by size.
FAMILIES = {
    "torch": (Image.Resampling.BICUBIC, {224: 256, 300: 332}),
    "torchvision_v2": (Image.Resampling.BILINEAR, {384: 384}),
    "torchvision_v2_l": (Image.Resampling.BICUBIC, {480: 480}),
}
CASES = [(family, size) for family, (_, sides) in FAMILIES.items() for size in sides]


def ours(photograph, family, size):
    file = io.BytesIO()
    photograph.save(file, "PNG")
    evaluate = tf.function(lambda x: images.eval_image(x, size, PREPROCESSING[family]))
    return evaluate(tf.constant(file.getvalue())).numpy().astype(int)


def theirs(photograph, family, size):
    """torchvision's Resize(short side) and CenterCrop(size) of an image in Pillow."""
    resampling, sides = FAMILIES[family]
    width, height = photograph.size
    short = min(width, height)
    width, height = (int(sides[size] * side / short) for side in (width, height))
    left, top = (round((side - size) / 2.0) for side in (width, height))
    resized = photograph.resize((width, height), resampling)
    return np.asarray(resized.crop((left, top, left + size, top + size))).astype(int)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize(("family", "size"), CASES)
def test_networks_from_pytorch_see_what_pillow_gives(family, size, name):
    """Pillow rounds, and clips, between rows and columns: a level here and there."""
    difference = np.abs(
        ours(PHOTOGRAPHS[name], family, size) - theirs(PHOTOGRAPHS[name], family, size)
    )
    assert difference.mean() <= 0.2
    assert np.mean(difference > 1) <= 1e-3


def case(images):
    """Returns the name of timm's images of this kind in the golden file."""
    normal = ("/".join(map(str, x)) for x in (images.mean, images.std))
    crop = (images.crop, images.crop_mode, images.interpolation)
    return ",".join(map(str, (images.eval_size, *crop, *normal)))


TIMM = {
    case(images): (name, images)
    for name, tags in timm.networks().items()
    for images in tags.values()
} | {case(images): ("", images) for images in (timm.Images(**more) for more in MORE)}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def test_every_kind_of_images_of_timms_networks_is_tested(golden):
    assert TIMM.keys() == set(map(str, golden["cases"]))


@pytest.mark.parametrize("kind", TIMM)
def test_every_network_of_timm_sees_what_timm_shows_it(golden, kind):
    name, expected = TIMM[kind]
    family = get_preprocessing(expected.fields(name)["preprocessing"])
    for photo, pixels in photographs().items():
        image = images.eval_image(tf.constant(pixels), expected.eval_size, family)
        values = np.asarray(normalize(image.numpy(), family.mean, family.std))
        assert np.abs(sample(values) - golden[f"{kind}/{photo}"]).mean() <= 0.01


@pytest.mark.parametrize(
    ("family", "black", "white"),
    [
        ("advprop", [-1, -1, -1], [1, 1, 1]),
        ("torch", [-2.1179, -2.0357, -1.8044], [2.2489, 2.4286, 2.6400]),
        ("torchvision_v2", [-2.1179, -2.0357, -1.8044], [2.2489, 2.4286, 2.6400]),
        ("torchvision_v2_l", [-1, -1, -1], [1, 1, 1]),
    ],
)
def test_networks_from_elsewhere_get_the_values_they_expect(family, black, white):
    family = PREPROCESSING[family]
    pixels = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    values = normalize(pixels, family.mean, family.std)
    np.testing.assert_allclose(values, [black, white], atol=1e-4)


def test_without_antialiasing_photographs_look_otherwise():
    """What the comparison above can tell apart."""
    photograph = PHOTOGRAPHS["cat"]
    difference = np.abs(ours(photograph, "v1", 224) - theirs(photograph, "torch", 224))
    assert difference.mean() > 2


def test_advprop_looks_as_v1():
    photograph = PHOTOGRAPHS["cat"]
    np.testing.assert_array_equal(ours(photograph, "advprop", 224), ours(photograph, "v1", 224))


def test_a_line_of_pixels_fills_a_square():
    """The longer side is cut before it is computed: it would be a hundred thousand pixels long."""
    line = Image.new("RGB", (3000, 1), (10, 200, 30))
    assert (ours(line, "torch", 32) == (10, 200, 30)).all()
    assert (ours(line.transpose(Image.Transpose.ROTATE_90), "torch", 32) == (10, 200, 30)).all()
