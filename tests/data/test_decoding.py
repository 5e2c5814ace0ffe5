"""Decoding a box of an image against Pillow, on photographs and on what people call images."""

import io

import numpy as np
import pytest
import skimage.data
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from effnetv2_jax.data import decoding

PHOTOGRAPHS = {
    "astronaut": skimage.data.astronaut(),
    "coffee": skimage.data.coffee(),
    "cat": skimage.data.chelsea(),
    "china": load_sample_images().images[0],
    "flower": load_sample_images().images[1],
}
PHOTOGRAPH = Image.fromarray(PHOTOGRAPHS["china"]).resize((200, 150))


def encode(image, form="JPEG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def as_pillow(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def decode_whole():
    function = tf.function(
        lambda encoded: decoding.decode_box(encoded, decoding.whole_box),
        input_signature=[tf.TensorSpec([], tf.string)],
    )
    return lambda encoded: function(tf.constant(encoded)).numpy().astype(int)


FORMS = {
    "jpeg": encode(PHOTOGRAPH),
    "progressive": encode(PHOTOGRAPH, progressive=True),
    "grey jpeg": encode(PHOTOGRAPH.convert("L")),
    "cmyk": encode(PHOTOGRAPH.convert("CMYK")),
    "one pixel": encode(PHOTOGRAPH.resize((1, 1))),
    "one pixel png": encode(PHOTOGRAPH.resize((1, 1)), "PNG"),
    "png": encode(PHOTOGRAPH, "PNG"),
    "grey png": encode(PHOTOGRAPH.convert("L"), "PNG"),
    "palette": encode(PHOTOGRAPH.convert("P"), "PNG"),
    "transparent": encode(PHOTOGRAPH.convert("RGBA"), "PNG"),
    "animated png": encode(PHOTOGRAPH, "PNG", save_all=True, append_images=[PHOTOGRAPH.rotate(9)]),
    "webp": encode(PHOTOGRAPH, "WEBP"),
    "lossless webp": encode(PHOTOGRAPH, "WEBP", lossless=True),
    "bmp": encode(PHOTOGRAPH, "BMP"),
    "gif": encode(PHOTOGRAPH, "GIF"),
    "animated gif": encode(PHOTOGRAPH, "GIF", save_all=True, append_images=[PHOTOGRAPH.rotate(9)]),
}


@pytest.mark.parametrize("encoded", FORMS.values(), ids=FORMS)
def test_decodes_to_what_pillow_decodes_to(decode_whole, encoded):
    np.testing.assert_array_equal(decode_whole(encoded), as_pillow(encoded))


def test_sixteen_bits_become_the_upper_eight(decode_whole):
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    decoded = decode_whole(encode(Image.fromarray(levels), "PNG"))
    np.testing.assert_array_equal(decoded, np.repeat(levels[..., None] >> 8, 3, axis=-1))


def test_a_raw_image_is_cut():
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    box = decoding.decode_box(tf.constant(pixels), lambda shape: tf.constant([1, 2, 3, 4]))
    np.testing.assert_array_equal(box, pixels[1:4, 2:6])


BROKEN = {
    "empty": b"",
    "text": b"not an image, but long enough for the header of any format",
    "start of a jpeg": b"\xff\xd8\xff",
    "half a jpeg": FORMS["jpeg"][: len(FORMS["jpeg"]) // 2],
    "half a png": FORMS["png"][: len(FORMS["png"]) // 2],
    "half a webp": FORMS["webp"][: len(FORMS["webp"]) // 2],
}


@pytest.mark.parametrize("encoded", BROKEN.values(), ids=BROKEN)
def test_broken_images_are_refused(decode_whole, encoded):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_whole(encoded)


def claiming(form, at, num_bytes, order="little"):
    """An image that claims to be large in its header, from which nothing else may be done."""
    data = bytearray(encode(Image.new("L", (8, 8)), form))
    at = data.index(at) + len(at) if isinstance(at, bytes) else at
    data[at : at + 2 * num_bytes] = (20_000).to_bytes(num_bytes, order) * 2
    return bytes(data)


BOMBS = {
    "JPEG": claiming("JPEG", b"\xff\xc0\0\x0b\x08", 2, "big"),
    "PNG": claiming("PNG", b"IHDR", 4, "big"),
    "GIF": claiming("GIF", 6, 2),
    "BMP": claiming("BMP", 18, 4),
    "JPEG2000": claiming("JPEG2000", b"ihdr", 4, "big"),
}


@pytest.mark.parametrize("encoded", BOMBS.values(), ids=BOMBS)
def test_a_decompression_bomb_is_refused_before_it_is_decoded(decode_whole, encoded):
    said = r"too large:\] \[20000 20000\]|400000000 pixels\) exceeds limit"
    with pytest.raises(tf.errors.InvalidArgumentError, match=said):
        decode_whole(encoded)


def test_decoding_at_a_smaller_scale_hardly_changes_what_is_seen():
    """Against all of the image decoded, cut and resized with antialiasing, as Pillow does it.

    Without antialiasing, as published runs resize, the whole image decoded differs more from that.
    """
    ours, published = zip(*map(differences, PHOTOGRAPHS.values()), strict=True)
    assert np.mean(ours) <= 3.0
    assert max(ours) <= 3.2  # a photograph of roof tiles
    assert all(a < b for a, b in zip(ours, published, strict=True))


def differences(pixels):
    """Mean absolute difference to Pillow's antialiased resize: (ours, published way)."""
    photograph = Image.fromarray(pixels).resize((1000, 750), Image.Resampling.LANCZOS)
    encoded = encode(photograph, quality=92)
    whole = Image.open(io.BytesIO(encoded))
    ours, published, scales = [], [], set()
    for size in (128, 171):
        for i in range(12):
            box = decoding.random_box(
                tf.constant([750, 1000]), (size, i), area_range=(0.05, 1.0),
                aspect_ratio_range=(0.75, 1.33), min_object_covered=0.0,
            )  # fmt: skip
            decoded = decoding.decode_box(
                tf.constant(encoded), lambda shape, box=box: box, min_size=size
            )
            scale = round(box.numpy()[2] / decoded.shape[0])
            if scale == 1:
                continue
            scales.add(scale)
            # The box is moved to the grid of the scaled image.
            y, x = (int(value + scale // 2) // scale * scale for value in box.numpy()[:2])
            height, width = (side * scale for side in decoded.shape[:2])
            cut = whole.crop((x, y, min(x + width, 1000), min(y + height, 750)))
            expected = np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
            for image, off in ((decoded, ours), (np.asarray(cut), published)):
                resized = decoding.resize(tf.constant(image), size, "bilinear").numpy()
                off.append(np.abs(resized.astype(int) - expected).mean())
    assert scales == {2, 4}
    return np.mean(ours), np.mean(published)


def test_a_box_is_what_pillow_cuts():
    encoded = encode(PHOTOGRAPH, quality=92, subsampling=0)
    box = decoding.decode_box(tf.constant(encoded), lambda shape: tf.constant([31, 45, 60, 77]))
    np.testing.assert_array_equal(box, as_pillow(encoded)[31:91, 45:122])


@pytest.mark.parametrize(("method", "name"), [("bilinear", "BILINEAR"), ("bicubic", "BICUBIC")])
def test_enlarging_is_pillows(method, name):
    """Pillow antialiases when it shrinks, and clips twice: only this can be compared."""
    pixels = np.random.default_rng(0).integers(80, 176, (9, 13, 3)).astype(np.uint8)
    ours = decoding.resize(tf.constant(pixels), 40, method).numpy().astype(int)
    theirs = np.asarray(Image.fromarray(pixels).resize((40, 40), Image.Resampling[name]), int)
    # At the border, which is two source pixels wide in bicubic, the two differ.
    interior = (slice(10, -10), slice(10, -10))
    assert np.abs(ours - theirs)[interior].max() <= 1


def test_central_box_is_the_published_one():
    side = int(100 * 224 / 256)
    box = decoding.central_box(tf.constant([100, 140]), 224)
    assert box.numpy().tolist() == [(100 - side) // 2, (140 - side) // 2, side, side]
    assert decoding.central_box(tf.constant([1, 1]), 32).numpy().tolist() == [0, 0, 1, 1]


def test_random_boxes_stay_in_their_ranges():
    areas, ratios = [], []
    for i in range(200):
        y, x, height, width = decoding.random_box(
            tf.constant([120, 160]), (0, i), area_range=(0.2, 0.6), aspect_ratio_range=(0.75, 1.33),
            min_object_covered=0.0,
        ).numpy()  # fmt: skip
        assert 0 <= y <= 120 - height and 0 <= x <= 160 - width
        areas.append(height * width / (120 * 160))
        ratios.append(width / height)
    assert 0.18 < min(areas) < 0.3 and 0.5 < max(areas) < 0.62
    assert 0.72 < min(ratios) < 0.85 and 1.2 < max(ratios) < 1.37


def test_flips_half_of_the_images():
    image = tf.constant(np.arange(12, dtype=np.uint8).reshape(1, 4, 3))
    flips = [decoding.random_flip(image, (0, i)).numpy() for i in range(200)]
    flipped = sum(np.array_equal(f, image.numpy()[:, ::-1]) for f in flips)
    assert 70 < flipped < 130
    assert sum(np.array_equal(f, image.numpy()) for f in flips) == 200 - flipped


@pytest.mark.parametrize(
    ("min_size", "scale"), [(151, 1), (150, 1), (75, 2), (74, 2), (37, 4), (9, 8)]
)
def test_a_jpeg_is_decoded_no_larger_than_needed(min_size, scale):
    """200 × 150 px, in a graph, where the decoders are functions to choose from."""
    decode = tf.function(
        lambda encoded: decoding.decode_box(encoded, decoding.whole_box, min_size=min_size)
    )
    shape = decode(tf.constant(FORMS["jpeg"])).shape
    assert shape == (round(150 / scale + 1e-9), round(200 / scale), 3)
    assert decode(tf.constant(FORMS["png"])).shape == (150, 200, 3)
