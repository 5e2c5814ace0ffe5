"""Loading into a model: its classifier, the fields that it takes over, weights that do not fit."""

import dataclasses

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from effnetv2_jax.models import get_spec
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import load_model, load_weights, read_weights, save_weights
from effnetv2_jax.weights.containers.files import open_tensors
from effnetv2_jax.weights.dialects.dialect import get_dialect
from tests.weights.conftest import (
    EFFICIENTNET,
    OURS,
    TIMM,
    TORCHVISION,
    arrays,
    make_tiny,
    same_bits,
)

IMAGES = jnp.asarray(np.random.default_rng(2).normal(size=(2, 32, 24, 3)), jnp.float32)


def write(path, model, dialect, prefix="", dtype=np.float32):
    """Writes a model's weights in a library's names."""
    places = dialect.places(model.spec, 10)
    tensors = {
        prefix + places[name].name: places[name].to_theirs(array).astype(dtype)
        for name, array in arrays(model).items()
    }
    safetensors.numpy.save_file(tensors, path)
    return tensors


@pytest.mark.parametrize("num_classes", [7, 0, 21843])
def test_another_number_of_classes_keeps_the_backbone(tiny_model, tiny_file, num_classes):
    model = make_tiny(seed=1, num_classes=num_classes)
    before = arrays(model)
    with pytest.raises(UsageError, match=rf"classifier.* \(10 classes there, {num_classes} in"):
        load_weights(model, str(tiny_file), strict=True)
    assert same_bits(arrays(model), before)
    loaded = load_weights(model, str(tiny_file))
    assert loaded.not_loaded == ("classifier.bias", "classifier.kernel")
    assert "classifier.bias, classifier.kernel not loaded (10 classes there" in str(loaded)
    assert loaded.class_names is None
    assert loaded.num_classes == num_classes
    expected = arrays(tiny_model) | {
        name: x for name, x in before.items() if name.startswith("classifier")
    }
    if not num_classes:
        expected = {name: x for name, x in expected.items() if not name.startswith("classifier")}
    assert same_bits(arrays(model), expected)


def test_a_head_of_imagenet21k_is_loaded(tmp_path):
    model = make_tiny(num_classes=21843)
    save_weights(model, tmp_path / "21k.safetensors")
    other, loaded = load_model(str(tmp_path / "21k.safetensors"))
    assert loaded.num_classes == 21843
    assert same_bits(arrays(other), arrays(model))


def test_weights_without_a_classifier(tmp_path):
    features = make_tiny(num_classes=0)
    save_weights(features, tmp_path / "features.safetensors")
    model = make_tiny(seed=1)
    loaded = load_weights(model, str(tmp_path / "features.safetensors"))
    assert loaded.reason == "0 classes there, 10 in the model"
    other, _ = load_model(str(tmp_path / "features.safetensors"))
    assert other.classifier is None


def test_a_model_takes_over_how_its_weights_were_trained(tmp_path, forward):
    """Its calls compute otherwise from then on, compiled ones too."""
    trained = make_tiny(padding="symmetric", bn_epsilon=1e-5)
    path = tmp_path / "mine.safetensors"
    write(path, trained, TIMM)
    model = make_tiny(seed=1)
    before = forward(model, IMAGES)
    loaded = load_weights(model, str(path), architecture="efficientnet_b0.ra_in1k")
    how = {"padding": "symmetric", "bn_epsilon": 1e-5}
    images = {"preprocessing": "torch", "train_size": 224, "eval_size": 224}
    assert loaded.changes == how | images
    assert model.spec == loaded.spec == dataclasses.replace(trained.spec, **images)
    np.testing.assert_array_equal(forward(model, IMAGES), forward(trained, IMAGES))
    assert not np.allclose(forward(model, IMAGES), before)
    # It would not be the same with the padding that it had.
    same = make_tiny()
    assert not np.allclose(forward(same, IMAGES), forward(trained, IMAGES), rtol=1e-3)
    # And back again.
    write(path, same, TIMM)
    load_weights(model, str(path), architecture="tf_efficientnet_b0")
    np.testing.assert_array_equal(forward(model, IMAGES), forward(same, IMAGES))


def test_timms_names_alone_do_not_say_how_to_pad(tmp_path):
    path = tmp_path / "mine.safetensors"
    write(path, make_tiny(), TIMM)
    with pytest.raises(UsageError, match=r"mine.safetensors': its tensors have timm's names"):
        load_model(str(path))
    _, loaded = load_model(str(path), architecture="tf_efficientnetv2_s")
    assert loaded.spec.padding == "same"
    _, loaded = load_model(str(path), architecture="efficientnetv2_s")
    assert loaded.spec.padding == "symmetric"


@pytest.mark.parametrize(
    ("model", "epsilon", "resize", "crop", "interpolation"),
    [
        ("efficientnet-b0", 1e-5, 256, 224, "bicubic"),
        ("efficientnet-b1", 1e-5, 256, 240, "bicubic"),
        ("efficientnet-b2", 1e-5, 288, 288, "bicubic"),
        ("efficientnet-b3", 1e-5, 320, 300, "bicubic"),
        ("efficientnet-b4", 1e-5, 384, 380, "bicubic"),
        ("efficientnet-b5", 1e-3, 456, 456, "bicubic"),
        ("efficientnet-b6", 1e-3, 528, 528, "bicubic"),
        ("efficientnet-b7", 1e-3, 600, 600, "bicubic"),
        ("efficientnetv2-s", 1e-3, 384, 384, "bilinear"),
        ("efficientnetv2-m", 1e-3, 480, 480, "bilinear"),
        ("efficientnetv2-l", 1e-3, 480, 480, "bicubic"),
    ],
)
def test_torchvisions_networks(model, epsilon, resize, crop, interpolation):
    """Compares with torchvision 0.28's transforms of the first weights of each network."""
    spec = dataclasses.replace(get_spec(model), **TORCHVISION.names.trained(model, None))
    family = get_preprocessing(spec.preprocessing)
    assert (spec.padding, spec.bn_epsilon) == ("symmetric", epsilon)
    assert (spec.eval_size, spec.eval_size + family.crop_margin) == (crop, resize)
    assert family.interpolation == interpolation
    assert family.antialias
    assert family.mean[0] == pytest.approx(127.5 if model.endswith("-l") else 0.485 * 255)


def test_torchvision_has_no_other_networks():
    with pytest.raises(UsageError, match="torchvision has no efficientnet-b8: it has efficientnet"):
        TORCHVISION.names.trained("efficientnet-b8", None)


def test_averages_are_taken_where_a_file_has_both(tmp_path):
    raw, average = make_tiny(seed=3), make_tiny(seed=4)
    tensors = write(tmp_path / "a.safetensors", raw, TIMM, prefix="state_dict.module.")
    tensors |= write(tmp_path / "b.safetensors", average, TIMM, prefix="state_dict_ema.module.")
    path = tmp_path / "tf_efficientnetv2_tiny.safetensors"
    safetensors.numpy.save_file(tensors, path)
    for ema, expected in ((True, average), (False, raw)):
        model, _ = load_model(str(path), ema=ema, architecture="tf_efficientnetv2_s")
        assert same_bits(arrays(model), arrays(expected))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats_become_float32(tiny_model, tmp_path, dtype):
    path = tmp_path / "tf_efficientnetv2_tiny.safetensors"
    write(path, tiny_model, TIMM, dtype=dtype)
    model, _ = load_model(str(path), architecture="tf_efficientnetv2_s")
    read = read_weights(str(path), architecture="tf_efficientnetv2_s").tensors.values()
    assert {x.dtype for x in read} == {np.dtype(np.float32)}
    expected = {name: x.astype(dtype).astype(np.float32) for name, x in arrays(tiny_model).items()}
    assert same_bits(arrays(model), expected)


def test_a_wrong_network_is_told_by_a_tensor_both_shapes_and_the_model_that_fits(tmp_path):
    path = tmp_path / "tf_efficientnetv2_tiny.safetensors"
    model = make_tiny(seed=1)
    write(path, model, TIMM)
    with pytest.raises(
        UsageError,
        match=r"does not fit efficientnet-b0: tensor conv_stem.weight has shape \(8, 3, 3, 3\) "
        r"there and \(32, 3, 3, 3\) in the model; it looks like efficientnetv2-tiny",
    ):
        load_model(str(path), "efficientnet-b0")


def test_a_deeper_network_does_not_pass_for_a_shallower_one(tmp_path):
    """The deeper one has every tensor of the shallower one, in the right shape."""
    groups = get_spec("efficientnetv2-tiny").groups
    deeper = (*groups[:2], dataclasses.replace(groups[2], repeats=3))
    path = tmp_path / "tf_efficientnetv2_tiny.safetensors"
    write(path, make_tiny(groups=deeper), TIMM)
    model = make_tiny(seed=1)
    before = arrays(model)
    with pytest.raises(
        UsageError, match=r"tensor blocks.2.2.* of shape .* has no place in the model; it is none"
    ):
        load_weights(model, str(path))
    with pytest.raises(UsageError, match="is none of the models here"):
        load_model(str(path))
    write(path, make_tiny(), TIMM)
    with pytest.raises(UsageError, match=r"blocks.2.2.* is missing; it looks like effici"):
        load_weights(make_tiny(groups=deeper), str(path))
    assert same_bits(arrays(model), before)


def test_blocks_that_a_library_has_not_are_named(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"_conv_stem.weight": np.zeros((8, 3, 3, 3), np.float32)}, path)
    with pytest.raises(
        UsageError, match="efficientnet_pytorch has no names for its blocks; it is none of the mod"
    ):
        load_model(str(path), "efficientnetv2-tiny")


def test_a_file_for_a_model_with_other_blocks_says_which_and_how_to_choose_it(tmp_path):
    dialect = get_dialect(EFFICIENTNET, "efficientnet_pytorch")
    places = dialect.places(get_spec("efficientnet-lite0"), 3).values()
    tensors = {place.name: np.zeros(place.shape, np.float32) for place in places}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(
        UsageError,
        match="does not fit efficientnetv2-b0: .* no names for its blocks; it looks like "
        r"efficientnet-lite0: name that model \(--model, or --config.model.name in training\)",
    ):
        load_model(str(tmp_path / "x.safetensors"), "efficientnetv2-b0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><title>403", "is a web page and no weights"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "is a web page and no weights"),
        (b"", "is empty"),
    ],
)
def test_what_stands_in_the_place_of_weights_is_named(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    for path in (tmp_path / "model.safetensors", tmp_path):
        with pytest.raises(UsageError, match=message):
            load_model(str(path))


@pytest.mark.parametrize("length", [0x0280, 0x0580, 0x8B1F])
def test_a_header_whose_length_begins_as_another_kind_of_file_does(tmp_path, length):
    """The length's first bytes are those of a pickle of protocol 2 or 5, and of gzip."""
    header = b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'.ljust(length)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header + np.float32(3).tobytes())
    with open_tensors(path) as tensors:
        assert dict(tensors.shapes) == {"x": (1,)}


def test_a_file_that_is_cut_short_changes_nothing(tiny_file):
    whole = tiny_file.read_bytes()
    model = make_tiny(seed=1)
    before = arrays(model)
    for length in (0, 5, 8, 100, len(whole) // 2, len(whole) - 1):
        tiny_file.write_bytes(whole[:length])
        with pytest.raises(UsageError, match=r"tiny.safetensors'"):
            load_weights(model, str(tiny_file))
    assert same_bits(arrays(model), before)


def test_files_without_weights_are_named(tmp_path):
    (tmp_path / "x.txt").write_text("hello, this is a text\nof two lines")
    with pytest.raises(UsageError, match=r"x.txt' holds no weights that are known"):
        load_model(str(tmp_path / "x.txt"))
    with pytest.raises(UsageError, match="holds no weights: no checkpoints/ of a run"):
        load_model(str(tmp_path))
    safetensors.numpy.save_file({"a.b": np.ones(3)}, tmp_path / "y.safetensors")
    with pytest.raises(UsageError, match=r"holds no EfficientNet .* 1 tensors \('a.b' …\)"):
        load_model(str(tmp_path / "y.safetensors"))
    with pytest.raises(
        UsageError,
        match=r"'nowhere.pth' are neither a file or folder nor an address nor a published",
    ):
        load_model("nowhere.pth")


def test_a_description_that_is_none_is_named(tiny_model, tmp_path):
    write(tmp_path / "x.safetensors", tiny_model, OURS)
    with pytest.raises(UsageError, match=r"x.safetensors': its description is not one that"):
        load_model(str(tmp_path / "x.safetensors"))
