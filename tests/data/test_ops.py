"""The image operations against Pillow's, NumPy where Pillow has none."""

import ast
import functools
import pathlib
import platform
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from effnetv2_jax.data import ops

OPS = {op.name: op for op in ops.OPS}
GREY = (128, 128, 128)
MAGNITUDES = (0.0, 2.25, 5.0, 8.333, 10.0, 14.0, 25.0)
SEED = tf.constant([3, 4])
POINTWISE = ("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize")
ENHANCE = ("Color", "Contrast", "Brightness", "Sharpness")
# Pillow blends in C floats, which compilers fuse to multiply-adds on some other machines; before
# truncation that can make a difference of one level.
BLEND_TOLERANCE = 0 if platform.machine() in ("x86_64", "AMD64") else 1


def structured_image():
    """Ramps, a disc and a stripe pattern on an odd by even grid, in part of the value range."""
    y, x = np.mgrid[:67, :90]
    image = np.stack([20 + 2 * x, 40 + 3 * y, 60 + (x + y) // 2], axis=-1)
    image[(y - 30) ** 2 + (x - 50) ** 2 < 300] = (200, 30, 90)
    image[:, ::7, 1] = 77
    return np.clip(image, 13, 231).astype(np.uint8)


def noise_image(height=96, width=96):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


IMAGES = {"structured": structured_image(), "noise": noise_image()}
SMALL_IMAGES = {
    "1x1": noise_image(1, 1),
    "1x5": noise_image(1, 5),
    "2x2": noise_image(2, 2),
    "4x1": noise_image(4, 1),
    "black": np.zeros((6, 5, 3), np.uint8),
    "constant": np.full((5, 6, 3), 77, np.uint8),
    "white": np.full((9, 9, 3), 255, np.uint8),
    "two_values": np.repeat(np.arange(2, dtype=np.uint8) * 9, 3 * 20).reshape(4, 10, 3),
}


def pillow_twin(name, image, argument, sign=1):
    image = Image.fromarray(image)
    if name == "Posterize":
        # Pillow's documented range starts at 1 bit.
        result = ImageOps.posterize(image, argument) if argument else Image.new("RGB", image.size)
    elif name == "Solarize":
        result = ImageOps.solarize(image, argument)
    elif name in POINTWISE:
        result = getattr(ImageOps, name.lower())(image)
    elif name in ENHANCE:
        result = getattr(ImageEnhance, name)(image).enhance(argument)
    elif name == "Rotate":
        result = image.rotate(sign * argument, Image.Resampling.NEAREST, fillcolor=GREY)
    else:
        value = sign * argument
        coefficients = {
            "ShearX": (1, value, 0, 0, 1, 0),
            "ShearY": (1, 0, 0, value, 1, 0),
            "TranslateX": (1, 0, value, 0, 1, 0),
            "TranslateY": (1, 0, 0, 0, 1, value),
        }[name]
        result = image.transform(
            image.size,
            Image.Transform.AFFINE,
            coefficients,
            Image.Resampling.NEAREST,
            fillcolor=GREY,
        )
    return np.asarray(result)


def apply_op(name, image, argument, seed=SEED):
    result = OPS[name].apply(tf.constant(image), argument, seed)
    assert result.dtype == tf.uint8
    return result.numpy()


def argument_of(name, magnitude):
    return OPS[name].argument(magnitude, 100.0, 40.0)


@functools.cache
def seeds_by_sign():
    """One seed for which random signs are negative, one for which they are positive."""
    found = {}
    for value in range(8):
        seed = tf.constant([value, 0])
        shifted = apply_op("TranslateX", np.zeros((1, 2, 3), np.uint8), 1.0, seed)
        found.setdefault(1 if shifted[0, 1, 0] == 128 else -1, seed)
    return found


@pytest.mark.parametrize(
    "image", [*IMAGES.values(), *SMALL_IMAGES.values()], ids=[*IMAGES, *SMALL_IMAGES]
)
@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_op_equals_pillow(name, image):
    for magnitude in MAGNITUDES:
        argument = argument_of(name, magnitude)
        expected = pillow_twin(name, image, argument)
        np.testing.assert_array_equal(apply_op(name, image, argument), expected, str(magnitude))


@pytest.mark.parametrize(
    "image", [*IMAGES.values(), *SMALL_IMAGES.values()], ids=[*IMAGES, *SMALL_IMAGES]
)
@pytest.mark.parametrize("name", ENHANCE)
def test_enhance_op_equals_pillow(name, image):
    for magnitude in MAGNITUDES:
        argument = argument_of(name, magnitude)
        expected = pillow_twin(name, image, argument).astype(int)
        difference = np.abs(apply_op(name, image, argument) - expected)
        assert difference.max() <= BLEND_TOLERANCE, (magnitude, difference.max())


def test_equalize_equals_pillow_for_skewed_histograms():
    # Nearly all pixels in the last bins: the step is small and Pillow's table runs over 255.
    rng = np.random.default_rng(1)
    for lowest in (0, 200, 250):
        image = (255 - rng.exponential(8, (80, 60, 3))).clip(lowest, 255).astype(np.uint8)
        expected = pillow_twin("Equalize", image, None)
        np.testing.assert_array_equal(apply_op("Equalize", image, None), expected)


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("name", ["TranslateX", "TranslateY"])
def test_translate_equals_pillow(name, image):
    for sign, seed in seeds_by_sign().items():
        for pixels in (0.0, 0.4, 0.5, 1.0, 7.5, 22.5, 50.0, 83.33, 250.0):
            expected = pillow_twin(name, image, pixels, sign)
            result = apply_op(name, image, pixels, seed)
            np.testing.assert_array_equal(result, expected, f"{sign} * {pixels}")


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY"])
def test_rotate_and_shear_equal_pillow(name, image):
    by_sign = seeds_by_sign()
    assert set(by_sign) == {-1, 1}
    for sign, seed in by_sign.items():
        for magnitude in (*MAGNITUDES, 27.0, 70.0):
            argument = argument_of(name, magnitude)
            expected = pillow_twin(name, image, argument, sign)
            differs = (apply_op(name, image, argument, seed) != expected).any(axis=-1)
            # Pillow steps through the input in 16-bit fixed point, TensorFlow in float32, so pixels
            # whose source is within about 1e-3 of a border between two pixels may differ. None of
            # these magnitudes puts whole rows exactly on a border, as a shear of 0.84 does.
            assert differs.mean() <= 0.001, (sign, magnitude, differs.mean())


def test_rotation_of_multiples_of_a_right_angle_is_exact():
    image = noise_image(40, 40)
    turned = {apply_op("Rotate", image, 90.0, seed).tobytes() for seed in seeds_by_sign().values()}
    assert turned == {np.rot90(image, 1).tobytes(), np.rot90(image, -1).tobytes()}
    half_turn = apply_op("Rotate", IMAGES["structured"], 180.0)
    np.testing.assert_array_equal(half_turn, IMAGES["structured"][::-1, ::-1])


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"])
def test_signs_are_equally_likely(name):
    image = tf.constant(noise_image(5, 5))
    argument = 45.0 if name == "Rotate" else 1.0

    @tf.function
    def apply_to_all(seeds):
        return tf.map_fn(
            lambda seed: OPS[name].apply(image, argument, seed), seeds, fn_output_signature=tf.uint8
        )

    results = apply_to_all(tf.stack([tf.range(400), tf.fill([400], 9)], axis=1)).numpy()
    _, counts = np.unique(results.reshape(400, -1), axis=0, return_counts=True)
    assert len(counts) == 2
    assert 150 < counts[0] < 250  # five standard deviations


def test_solarize_add_equals_numpy():
    for image in (*IMAGES.values(), *SMALL_IMAGES.values()):
        for magnitude in MAGNITUDES:
            argument = argument_of("SolarizeAdd", magnitude)
            values = image.astype(int)
            expected = np.where(values < 128, np.clip(values + argument, 0, 255), values)
            np.testing.assert_array_equal(apply_op("SolarizeAdd", image, argument), expected)


@pytest.mark.parametrize("half_side", [0, 1, 2, 50])
def test_cutout_equals_numpy_and_reaches_every_centre(half_side):
    height, width, count = 7, 5, 1000
    image = noise_image(height, width)
    image[image == 128] = 127
    expected = set()
    for y in range(height):
        for x in range(width):
            cut = image.copy()
            rows = slice(max(y - half_side, 0), y + half_side)
            columns = slice(max(x - half_side, 0), x + half_side)
            cut[rows, columns] = 128
            expected.add(cut.tobytes())

    @tf.function
    def apply_to_all(seeds):
        return tf.map_fn(
            lambda seed: OPS["Cutout"].apply(tf.constant(image), half_side, seed),
            seeds,
            fn_output_signature=tf.uint8,
        )

    results = apply_to_all(tf.stack([tf.range(count), tf.fill([count], 5)], axis=1)).numpy()
    assert {result.tobytes() for result in results} == expected


@pytest.mark.parametrize(
    "magnitude, angle, bits, threshold, factor, shear, pixels, half, add",
    [
        (0.0, 0.0, 0, 0, 0.1, 0.0, 0.0, 0, 0),
        (5.0, 15.0, 2, 128, 1.0, 0.15, 50.0, 20, 55),
        (10.0, 30.0, 4, 256, 1.9, 0.3, 100.0, 40, 110),
        (15.0, 45.0, 6, 384, 2.8, 0.45, 150.0, 60, 165),
        (25.0, 75.0, 8, 640, 4.6, 0.75, 250.0, 100, 275),
    ],
)
def test_arguments(magnitude, angle, bits, threshold, factor, shear, pixels, half, add):
    expected = {
        "AutoContrast": None,
        "Equalize": None,
        "Invert": None,
        "Rotate": angle,
        "Posterize": bits,
        "Solarize": threshold,
        "Color": factor,
        "Contrast": factor,
        "Brightness": factor,
        "Sharpness": factor,
        "ShearX": shear,
        "ShearY": shear,
        "TranslateX": pixels,
        "TranslateY": pixels,
        "Cutout": half,
        "SolarizeAdd": add,
    }
    assert [op.name for op in ops.OPS] == list(expected)
    for name, value in expected.items():
        argument = argument_of(name, magnitude)
        assert argument == (value if value is None else pytest.approx(value)), name
        assert type(argument) is type(value), name


def test_constants_scale_translation_and_cutout():
    assert OPS["TranslateX"].argument(5.0, 30.0, 7.0) == 15.0
    assert OPS["TranslateY"].argument(5.0, 30.0, 7.0) == 15.0
    assert OPS["Cutout"].argument(5.0, 30.0, 7.0) == 3


@pytest.mark.parametrize("name", OPS)
def test_small_and_constant_images(name):
    for image in SMALL_IMAGES.values():
        for magnitude in (0.0, 10.0, 25.0):
            for sign_seed in seeds_by_sign().values():
                result = apply_op(name, image, argument_of(name, magnitude), sign_seed)
                assert result.shape == image.shape


def test_imports_only_tensorflow_and_the_standard_library():
    tree = ast.parse(pathlib.Path(ops.__file__).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported <= {"tensorflow", *sys.stdlib_module_names}
