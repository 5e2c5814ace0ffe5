"""Images of all formats, modes and depths: the pixels are Pillow's, and nothing crashes."""

import io
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from effnetv2_jax.data import decoding

FORMATS = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "DIB": ("1", "L", "P", "RGB", "RGBA"),
    "WEBP": ("L", "LA", "RGB", "RGBA"),
    "AVIF": ("L", "LA", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
    "PPM": ("1", "L", "RGB", "I;16"),
}
OPTIONS = {
    "JPEG": [
        {"progressive": True},
        {"quality": 100, "subsampling": 0},
        {"subsampling": 2, "optimize": True},
        {"restart_marker_rows": 1},
    ],
    "PNG": [{}, {"compress_level": 0}, {"optimize": True}],
    "WEBP": [{"lossless": True}, {"quality": 50}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}],
}


def encode(image, form="JPEG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def as_pillow(encoded, turn=False):
    """Pillow's own conversion, but the upper byte of grey with 16 bits, which it would clip."""
    image = Image.open(io.BytesIO(encoded))
    image = ImageOps.exif_transpose(image) if turn else image
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


def picture(seed, height, width, mode):
    """A picture of smooth colours and noise, in a mode of Pillow."""
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, (height, width)).astype(np.uint16))
    coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 4)).astype(np.uint8), "RGBA")
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    if mode == "CMYK":
        return Image.frombytes(mode, image.size, image.tobytes())
    if mode == "P":
        return image.convert("RGB").quantize(int(rng.choice([2, 4, 16, 256])))
    if mode in ("LA", "RGBA"):
        return image.convert(mode)
    return image.convert("RGB").convert("L" if mode in ("I", "F") else mode).convert(mode)


def decoder(choose_box=decoding.whole_box, **options):
    function = tf.function(
        lambda encoded: decoding.decode_box(encoded, choose_box, **options),
        input_signature=[tf.TensorSpec([], tf.string)],
    )
    return lambda encoded: function(tf.constant(encoded)).numpy()


decode = decoder()
turned = decoder(exif_orientation=True)
turned_box = decoder(lambda shape: tf.constant([7, 11, 20, 30]), exif_orientation=True)


@given(
    form_and_mode=st.sampled_from(
        [(form, mode) for form, modes in FORMATS.items() for mode in modes]
    ),
    option=st.integers(0, 3),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 99),
)
@settings(max_examples=250, deadline=None, derandomize=True, database=None)
def test_pixels_are_pillows(form_and_mode, option, height, width, seed):
    form, mode = form_and_mode
    options = OPTIONS.get(form, [{}])
    encoded = encode(picture(seed, height, width, mode), form, **options[option % len(options)])
    np.testing.assert_array_equal(decode(encoded), as_pillow(encoded))


def gif(canvas, at, size):
    """A GIF whose first frame of green covers only a part of a canvas of red."""
    frame = Image.new("P", size, 1)
    frame.putpalette([255, 0, 0, 0, 255, 0])
    content = encode(frame, "GIF")
    begin = content.index(b",")
    flags = content[begin + 9]
    data = content[begin + 10 + (3 * 2 ** ((flags & 7) + 1) if flags & 128 else 0) :]
    header = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0xF0, 0, 0)
    descriptor = b"," + struct.pack("<HHHHB", *at, *size, 0)
    return header + bytes([255, 0, 0, 0, 255, 0]) + descriptor + data


def without_adobe(encoded):
    begin = encoded.index(b"\xff\xee")
    return encoded[:begin] + encoded[begin + 2 + int.from_bytes(encoded[begin + 2 : begin + 4]) :]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8))
FRAMES = {"save_all": True, "append_images": [NOISE.rotate(90), NOISE.rotate(180)]}
ODD = {
    "gif with a small first frame": gif((8, 6), (2, 1), (3, 3)),
    "animated webp": encode(NOISE, "WEBP", **FRAMES),
    "animated avif": encode(NOISE, "AVIF", **FRAMES),
    "animated png": encode(NOISE, "PNG", **FRAMES),
    "animated png beside another image": encode(NOISE, "PNG", **FRAMES, default_image=True),
    "tiff of several pages": encode(NOISE, "TIFF", **FRAMES),
    "two photographs": encode(NOISE, "MPO", save_all=True, append_images=[NOISE.rotate(90)]),
    "rgb jpeg": encode(NOISE, keep_rgb=True),
    "transparent palette": encode(NOISE.quantize(16), "PNG", transparency=3),
    "palette of transparencies": encode(NOISE.quantize(4), "PNG", transparency=bytes([0, 9, 99])),
    "transparent colour": encode(NOISE, "PNG", transparency=(1, 2, 3)),
    "transparent grey": encode(NOISE.convert("L"), "PNG", transparency=7),
    "cmyk not of adobe": without_adobe(encode(NOISE.convert("CMYK"))),
}


@pytest.mark.parametrize("encoded", ODD.values(), ids=ODD)
def test_odd_images_are_pillows(encoded):
    np.testing.assert_array_equal(decode(encoded), as_pillow(encoded))


# JPEG XL of 2 × 3 px by imagecodecs 2026.3.6, as a stream and in a container; an iPhone's start.
JXL = bytes.fromhex("ff0a1000028048080401001c004b188b15820300")
STRANGE = {
    "JPEG XL cannot be read: convert it": JXL,
    "JPEG XL cannot be read: convert it to JPEG": bytes.fromhex(
        "0000000c4a584c200d0a870a00000014667479706a786c20000000006a786c200000001c6a786c63"
    )
    + JXL,
    "HEIC cannot be read: convert it to JPEG or PNG": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    + bytes(40),
    "it is no image of a known format": b"not an image",
}


@pytest.mark.parametrize("what", STRANGE)
def test_other_formats_are_called_by_name(what):
    with pytest.raises(tf.errors.InvalidArgumentError, match=what):
        decode(STRANGE[what])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 mean nothing
def test_exif_orientation_is_pillows(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(0, 48, 80, "RGB")
    encoded = encode(image, form, exif=exif, **({"subsampling": 0} if form == "JPEG" else {}))
    expected = as_pillow(encoded, turn=True)
    np.testing.assert_array_equal(turned(encoded), expected)
    np.testing.assert_array_equal(turned_box(encoded), expected[7:27, 11:41])
    np.testing.assert_array_equal(decode(encoded), as_pillow(encoded))


def test_a_photograph_is_turned_at_every_scale():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = picture(1, 240, 320, "RGB")
    for min_size in (200, 100, 50, 25):
        options = {"min_size": min_size, "exif_orientation": True}
        scaled = decoder(**options)(encode(image, exif=exif))
        expected = decoder(min_size=min_size)(encode(image))
        np.testing.assert_array_equal(scaled, np.rot90(expected, -1))


def test_pillows_images_are_counted_in_the_log(monkeypatch, caplog):
    monkeypatch.setattr(decoding, "_counts", decoding._Counts())
    caplog.set_level("INFO", logger="absl")
    for _ in range(11):
        decode(ODD["animated webp"])
    decode(encode(NOISE))
    decode(encode(NOISE, "BMP"))
    lines = [record.message for record in caplog.records if "Pillow" in record.message]
    assert lines == [
        f"{count} so far, decoded by Pillow"
        for count in ("1 WEBP image", "10 WEBP images", "1 BMP image")
    ]


SEEDS = [
    *ODD.values(),
    *(encode(picture(0, 31, 23, mode), form) for form, modes in FORMATS.items() for mode in modes),
]


@pytest.mark.slow
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    cut=st.sampled_from([1.0, 1.0, 1.0, 0.99, 0.9, 0.5]),
    turn=st.booleans(),
)
@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
def test_mutated_images_are_pillows_or_refused(seed, changes, cut, turn):
    content = bytearray(seed)
    for place, value in changes:
        # Rather the headers than the pixels.
        content[int(place**3 * (len(content) - 1))] = value
    encoded = bytes(content[: int(cut * len(content))])
    started = time.monotonic()
    try:
        ours = (turned if turn else decode)(encoded)
    except tf.errors.InvalidArgumentError:
        ours = None
    assert time.monotonic() - started < 10
    try:
        expected = as_pillow(encoded, turn)
    except Exception:
        expected = None
    if ours is not None and expected is not None:
        np.testing.assert_array_equal(ours, expected)


PROGRAM = """
import io
import sys

import tensorflow as tf
from PIL import Image

from effnetv2_jax.data import pipeline
from effnetv2_jax.data.sources import Source, Split
from effnetv2_jax.preprocessing import PREPROCESSING

file = io.BytesIO()
Image.new("RGB", (60, 40)).save(file, "WEBP")
image = tf.constant(file.getvalue())
split = Split.of_examples(10**5, lambda i: {"image": image, "label": i})
source = Source("x", ("a",), lambda name: split)
batches = pipeline.eval_batches(
    source, "all", image_size=64, batch_size=32, preprocessing=PREPROCESSING["v2"]
)
next(batches)
sys.exit(2)
"""


@pytest.mark.slow
def test_a_program_ends_while_pillow_decodes():
    for _ in range(4):  # Without care, it hangs most times.
        assert subprocess.run([sys.executable, "-c", PROGRAM], timeout=120).returncode == 2
