"""The image operations against Pillow's, NumPy where Pillow has none."""

import ast
import pathlib
import platform
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from effnetv2_jax.data.augment import operations as ops

OPS = {op.name: op for op in ops.OPS}
GREY = (128, 128, 128)
MAGNITUDES = (0.0, 2.25, 5.0, 8.333, 10.0, 14.0, 25.0)
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


def draws_of(sign=1, y=0.5, x=0.5):
    return tf.constant([0.25 if sign < 0 else 0.75, y, x], tf.float32)


def apply_op(name, image, argument, draws=None):
    draws = draws_of() if draws is None else draws
    result = OPS[name].apply(tf.constant(image), argument, draws)
    assert result.dtype == tf.uint8
    return result.numpy()


def argument_of(name, magnitude):
    return OPS[name].argument(magnitude, 100.0, 40.0)


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
    for sign in (-1, 1):
        for pixels in (0.0, 0.4, 0.5, 1.0, 7.5, 22.5, 50.0, 83.33, 250.0):
            expected = pillow_twin(name, image, pixels, sign)
            result = apply_op(name, image, pixels, draws_of(sign))
            np.testing.assert_array_equal(result, expected, f"{sign} * {pixels}")


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY"])
def test_rotate_and_shear_equal_pillow(name, image):
    # Pillow steps through the input in 16-bit fixed point, `ops` computes in float64, so pixels
    # whose source is within about 1e-3 of a border between two pixels may differ. A rotation has a
    # few of them (3 or 4 of 6000 or 9000 here); these shears have none, as opposed to one by 0.84,
    # which puts whole rows exactly on a border.
    tolerance = 5e-4 if name == "Rotate" else 0
    for sign in (-1, 1):
        for magnitude in (*MAGNITUDES, 27.0, 70.0):
            argument = argument_of(name, magnitude)
            expected = pillow_twin(name, image, argument, sign)
            result = apply_op(name, image, argument, draws_of(sign))
            differs = (result != expected).any(axis=-1)
            assert differs.mean() <= tolerance, (sign, magnitude, differs.sum())


def test_rotation_of_multiples_of_a_right_angle_is_exact():
    image = noise_image(40, 40)
    for sign in (-1, 1):
        turned = apply_op("Rotate", image, 90.0, draws_of(sign))
        np.testing.assert_array_equal(turned, np.rot90(image, sign))
        half_turn = apply_op("Rotate", IMAGES["structured"], 180.0, draws_of(sign))
        np.testing.assert_array_equal(half_turn, IMAGES["structured"][::-1, ::-1])


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"])
def test_signs_are_equally_likely(name):
    image = noise_image(5, 5)
    argument = 45.0 if name == "Rotate" else 1.0
    below_half, below_one = np.nextafter(np.float32([0.5, 1.0]), np.float32(0))
    signs = {0.0: -1, 0.25: -1, below_half: -1, 0.5: 1, 0.75: 1, below_one: 1}
    for draw, sign in signs.items():
        result = apply_op(name, image, argument, tf.constant([draw, 0.1, 0.9], tf.float32))
        np.testing.assert_array_equal(result, pillow_twin(name, image, argument, sign), str(draw))


def test_solarize_add_equals_numpy():
    for image in (*IMAGES.values(), *SMALL_IMAGES.values()):
        for magnitude in MAGNITUDES:
            argument = argument_of("SolarizeAdd", magnitude)
            values = image.astype(int)
            expected = np.where(values < 128, np.clip(values + argument, 0, 255), values)
            np.testing.assert_array_equal(apply_op("SolarizeAdd", image, argument), expected)


@pytest.mark.parametrize("half_side", [0, 1, 2, 50])
def test_cutout_equals_numpy_and_reaches_every_centre(half_side):
    height, width = 7, 5
    image = noise_image(height, width)
    image[image == 128] = 127
    below_one = np.nextafter(np.float32(1), np.float32(0))
    # Every centre is as likely as another: a draw's range of 1 / size each.
    rows = {(y + 0.5) / height: y for y in range(height)} | {0.0: 0, below_one: height - 1}
    columns = {(x + 0.5) / width: x for x in range(width)} | {0.0: 0, below_one: width - 1}
    for draw_y, y in rows.items():
        for draw_x, x in columns.items():
            expected = image.copy()
            expected[
                max(y - half_side, 0) : y + half_side, max(x - half_side, 0) : x + half_side
            ] = 128
            result = apply_op("Cutout", image, half_side, draws_of(y=draw_y, x=draw_x))
            np.testing.assert_array_equal(result, expected, f"{draw_y}, {draw_x}")


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
            for sign in (-1, 1):
                result = apply_op(name, image, argument_of(name, magnitude), draws_of(sign))
                assert result.shape == image.shape


# Where RandAugment's compiled program is tested. The enhance operations' factors are 1 and 1.9.
COMPILED_MAGNITUDES = (5.0, 10.0)
# Of 1.2 as float32, which is above 1.2, a multiple is often just above an integer.
FUSED_MAGNITUDE = 55 / 9
COMPILED_TABLE = [(op, argument_of(op.name, m)) for m in COMPILED_MAGNITUDES for op in ops.OPS] + [
    (OPS[name], argument_of(name, FUSED_MAGNITUDE)) for name in ENHANCE
]


@pytest.fixture(scope="module", params=IMAGES)
def compiled(request):
    """An image, and (indices, draws) → what one program of all operations makes of it."""
    image = IMAGES[request.param]

    @tf.function(
        input_signature=[
            tf.TensorSpec([3], tf.int32),
            tf.TensorSpec([3, ops.NUM_DRAWS], tf.float32),
        ]
    )
    def function(indices, draws):
        return ops.apply_ops(tf.constant(image), COMPILED_TABLE, indices, draws)

    return image, lambda indices, draws: function(indices, tf.stack(draws)).numpy()


NO_OP = len(COMPILED_TABLE)


@pytest.mark.parametrize("name", OPS)
def test_compiled_op_equals_eager_one(compiled, name):
    image, function = compiled
    for index, (op, argument) in enumerate(COMPILED_TABLE[: 2 * len(OPS)]):
        if op.name == name:
            for draws in (draws_of(-1, 0.1, 0.9), draws_of(1, 0.7, 0.3)):
                result = function([NO_OP, index, NO_OP], [draws_of(), draws, draws_of()])
                expected = apply_op(name, image, argument, draws)
                np.testing.assert_array_equal(result, expected, f"{argument} {draws}")


@pytest.mark.parametrize("name", ENHANCE)
def test_compiled_blend_is_within_a_level_of_pillows(compiled, name):
    # XLA fuses the multiplication and the addition, Pillow rounds in between. Where the exact
    # result is an integer, as with a factor of 1.2 for every fifth difference, the fused one may be
    # just below it and is truncated to one level less.
    image, function = compiled
    index = COMPILED_TABLE.index((OPS[name], argument_of(name, FUSED_MAGNITUDE)))
    result = function([index, NO_OP, NO_OP], [draws_of()] * 3)
    difference = result - pillow_twin(name, image, COMPILED_TABLE[index][1]).astype(int)
    assert set(np.unique(difference)) <= {-1, 0}
    assert (difference != 0).any(axis=-1).mean() <= 0.1


def test_compiled_layers_are_applied_in_order_with_their_own_draws(compiled):
    image, function = compiled
    names = [op.name for op in ops.OPS]
    draws = [draws_of(-1, 0.2, 0.6), draws_of(1, 0.9, 0.1), draws_of(1, 0.4, 0.8)]
    for chosen in (("Rotate", "Cutout", "Equalize"), ("ShearX", "ShearX", "TranslateY")):
        expected = image
        for name, draw in zip(chosen, draws, strict=True):
            expected = apply_op(name, expected, argument_of(name, COMPILED_MAGNITUDES[0]), draw)
        result = function([names.index(name) for name in chosen], draws)
        np.testing.assert_array_equal(result, expected, str(chosen))


@pytest.mark.parametrize("index", [-1, NO_OP, NO_OP + 5])
def test_compiled_index_outside_the_table_leaves_the_image_as_it_is(compiled, index):
    image, function = compiled
    np.testing.assert_array_equal(function([index] * 3, [draws_of()] * 3), image)


def test_imports_only_tensorflow_numpy_and_the_standard_library():
    tree = ast.parse(pathlib.Path(ops.__file__).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported <= {"numpy", "tensorflow", *sys.stdlib_module_names}


def test_a_noise_square_is_bright_noise_around_a_pixel_and_leaves_the_rest():
    image = tf.zeros([20, 30, 3], tf.uint8)
    areas = []
    for i in range(40):
        result = ops.noise_square(image, tf.constant([i, 0], tf.int64), half_side=5).numpy()
        rows, columns = (np.flatnonzero(result.any(axis=axes)) for axes in ((1, 2), (0, 2)))
        square = result[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert square.min() >= 128
        assert np.unique(square).size > 20
        assert np.count_nonzero(result) == square.size
        assert max(square.shape) <= 10
        areas.append(square.size // 3)
    assert max(areas) == 100 > min(areas)  # cut off at the border
