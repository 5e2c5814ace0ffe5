"""Which network of timm a file holds, and the images that it expects: nothing is guessed."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from effnetv2_jax.models import get_spec
from effnetv2_jax.models.registry import SPECS
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import load_model, read_weights, timm
from effnetv2_jax.weights.containers.files import open_tensors
from effnetv2_jax.weights.dialects.dialect import get_dialect
from tests.weights.conftest import EFFICIENTNET, TIMM, TIMM_VIT, VIT

HALF = "mean=127.5,std=127.5"


@pytest.fixture(scope="module")
def b0(tmp_path_factory):
    """A file of B0 in timm's names, without a word about itself."""
    path = tmp_path_factory.mktemp("b0") / "x"
    places = TIMM.places(get_spec("efficientnet-b0"), 3).values()
    tensors = {place.name: np.zeros(place.shape, np.float16) for place in places}
    safetensors.numpy.save_file(tensors, path)
    return path


def put(path, content, config=None):
    """Puts a file at a path, and a config.json beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.hardlink_to(content)
    if config is not None:
        (path.parent / "config.json").write_text(json.dumps(config))
    return str(path)


def ask(tmp_path, file, config=None, architecture=None):
    """Asks about a file of one tensor."""
    safetensors.numpy.save_file({"x": np.ones(1)}, tmp_path / "content")
    put(tmp_path / file, tmp_path / "content", config)
    with open_tensors(tmp_path / file) as tensors:
        return timm.ask(tensors.about, architecture)


# The table.


def test_every_network_of_the_table_is_one_of_ours():
    names = {x for library in (TIMM, TIMM_VIT) for x in timm.networks() if of(library, x)}
    assert names == timm.networks().keys()
    # And all of ours that timm has are in it.
    ours = {of(library, x) for library in (TIMM, TIMM_VIT) for x in timm.networks()}
    assert SPECS.keys() - ours == {
        "efficientnetv2-tiny", *(f"efficientnet-b4-fused-1-{i}" for i in (3, 5, 7))
    }  # fmt: skip


def of(library, name):
    ours = library.names.our_model(name)
    return ours if ours in library.family.specs else None


@pytest.mark.parametrize(
    ("name", "preprocessing", "size"),
    [
        ("tf_efficientnetv2_s.in21k", f"torch,{HALF},crop=1.0", 384),
        ("tf_efficientnetv2_xl.in21k_ft_in1k", f"torch,{HALF},crop=1.0,crop_mode=squash", 512),
        ("tf_efficientnetv2_b3.in21k_ft_in1k", f"torch,{HALF},crop=0.9,crop_mode=squash", 300),
        ("tf_efficientnetv2_b0.in1k", "torch", 224),
        ("tf_efficientnet_b4.ns_jft_in1k", "torch", 380),
        ("tf_efficientnet_b4.ap_in1k", f"torch,{HALF}", 380),
        ("tf_efficientnet_b4_ap", f"torch,{HALF}", 380),
        ("tf_efficientnet_lite3.in1k", f"torch,{HALF},interpolation=bilinear,crop=0.904", 300),
        ("efficientnet_b0.ra_in1k", "torch", 224),
        ("efficientnet_b0.ra4_e3600_r224_in1k", f"torch,{HALF},crop=1.0", 256),
        ("efficientnet_b2.ra_in1k", "torch,crop=1.0", 288),
        ("efficientnet_b3.ra2_in1k", "torch,crop=1.0", 320),
        ("efficientnet_b5.sw_in12k", "torch,crop=0.95", 416),
        ("efficientnet_b5.sw_in12k_ft_in1k", "torch,crop=1.0,crop_mode=squash", 448),
        ("efficientnetv2_rw_t.ra2_in1k", "torch,crop=1.0", 288),
        ("vit_base_patch16_224.augreg2_in21k_ft_in1k", "vit", None),
        ("vit_base_patch16_384.augreg_in1k", "vit", None),
        ("vit_base_patch16_224.dino", "deit", None),
        ("vit_large_patch16_224.mae", "deit", None),
        ("deit_base_patch16_384.fb_in1k", "deit", None),
    ],
)
def test_a_tag_says_which_images_a_network_expects(name, preprocessing, size):
    told = timm.ask({"names": (name,)})
    fields = told.images.fields(told.architecture)
    assert (fields["preprocessing"], fields.get("eval_size")) == (preprocessing, size)
    assert get_preprocessing(preprocessing).name == preprocessing


def test_the_padding_and_epsilon_are_those_of_the_architecture():
    for name in timm.networks():
        if of(TIMM, name):
            expected = ("same", 1e-3) if name.startswith("tf_") else ("symmetric", 1e-5)
            assert tuple(TIMM.names.trained("", name).values()) == expected


def test_the_model_that_timm_has_is_evaluated_as_in_timm():
    for model, name in {
        "efficientnetv2-rw-t": "efficientnetv2_rw_t",
        "vit-b-16": "vit_base_patch16_384",
        "deit-s": "deit_small_patch16_224",
        "deit-b-384": "deit_base_patch16_384",
    }.items():
        spec = get_spec(model)
        (images,) = set(timm.networks()[name].values())
        assert (spec.eval_size, spec.preprocessing) == (
            images.eval_size,
            images.fields(name)["preprocessing"],
        )


# The order of trust.


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (
            "tf_efficientnetv2_s_21ft1k-d7dafa41.pth.safetensors",
            "tf_efficientnetv2_s.in21k_ft_in1k",
        ),
        ("tf_efficientnetv2_s_21ft1k-01234567.pth", "tf_efficientnetv2_s.in21k_ft_in1k"),
        ("tf_efficientnet_b0-0af12548.pth", "tf_efficientnet_b0.in1k"),
        ("efficientnet_b0_ra-3dd342df.pth", "efficientnet_b0.ra_in1k"),
        ("deit_small_patch16_224-cd65a155.pth", "deit_small_patch16_224.fb_in1k"),
        ("dino_vitbase16_pretrain.pth", "vit_base_patch16_224.dino"),
        ("tf_efficientnet_b4.ap_in1k/model.safetensors", "tf_efficientnet_b4.ap_in1k"),
        ("tf_efficientnet_b4.ap_in1k/tf_efficientnet_b4.pth", "tf_efficientnet_b4.ap_in1k"),
    ],
)
def test_an_exact_name_is_known(tmp_path, file, name):
    told = ask(tmp_path, file)
    bare, _, tag = name.partition(".")
    assert (told.architecture, told.images) == (bare, timm.networks()[bare][tag])
    assert told.by == f"timm's {name}, as the name of the file or its folder says"


@pytest.mark.parametrize(
    "file",
    [
        "efficientnet_best.pth",
        "efficientnet_project/model.safetensors",
        "tf_efficientnetv2_s_finetuned.pth",
        "my_tf_efficientnet_b0.in1k.pth",
        "tf-efficientnet-b0.in1k.pth",
        "maxvit_tiny_tf_224.safetensors",
    ],
)
def test_a_name_that_only_resembles_one_says_nothing(tmp_path, file):
    assert ask(tmp_path, file) == timm.Told()


@pytest.mark.parametrize(
    "file", ["efficientnet_best.pth", "efficientnet_project/model.safetensors"]
)
def test_then_the_user_is_asked(tmp_path, b0, file):
    path = put(tmp_path / file, b0)
    with pytest.raises(UsageError) as error:
        load_model(path)
    assert str(error.value) == (
        f"{path!r}: its tensors have timm's names, which do not say whether the network pads as "
        "in TensorFlow or as in PyTorch: give timm's name of it as architecture "
        "(--architecture, in training --config.init_architecture), such as efficientnet_b0 or "
        "tf_efficientnet_b0"
    )
    weights = read_weights(path, architecture="tf_efficientnet_b0.ap_in1k")
    assert (weights.spec.padding, weights.spec.bn_epsilon) == ("same", 1e-3)
    assert weights.spec.preprocessing == f"torch,{HALF}"
    assert weights.assumed == "as timm's tf_efficientnet_b0.ap_in1k, as you say"


def test_a_name_without_a_tag_says_how_to_pad_and_perhaps_the_images(tmp_path, b0):
    path = put(tmp_path / "efficientnet_b0.pth", b0)
    message = (
        r"several networks efficientnet_b0, .* one of efficientnet_b0.ra_in1k, efficientnet_b0.ra4_"
    )
    with pytest.raises(UsageError, match=message):
        read_weights(path, "efficientnet-b0")
    weights = read_weights(path, preprocessing="torch,crop=0.9")
    assert (weights.spec.padding, weights.spec.preprocessing) == ("symmetric", "torch,crop=0.9")
    weights = read_weights(path, architecture="efficientnet_b0")
    assert (weights.spec.preprocessing, weights.spec.eval_size) == ("torch", 224)
    assert "with timm's own tag ra_in1k" in weights.assumed
    # All tags of this one expect the same.
    assert ask(tmp_path, "tf_efficientnetv2_s.pth").images.eval_size == 384


def test_a_folder_named_after_another_network_says_nothing(tmp_path, b0):
    path = put(tmp_path / "tf_efficientnet_b3.in1k" / "student.pth", b0)
    with pytest.raises(UsageError, match="do not say whether the network pads"):
        read_weights(path)


def test_config_json_comes_before_names_and_its_images_before_its_tag(tmp_path, b0):
    config = {
        "architecture": "tf_efficientnet_b0",
        "model_args": {"num_classes": 3, "in_chans": 3, "global_pool": "avg", "bn_eps": 1e-3},
        "pretrained_cfg": {
            "tag": "in1k",
            "input_size": [3, 192, 192],
            "test_input_size": [3, 256, 256],
            "crop_pct": 0.8,
            "test_crop_pct": 0.95,
            "crop_mode": "border",
            "interpolation": "bilinear",
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.2, 0.2],
        },
    }
    path = put(tmp_path / "efficientnet_b0.ra_in1k" / "model.safetensors", b0, config)
    for source in (path, str(tmp_path / "efficientnet_b0.ra_in1k")):
        spec = read_weights(source).spec
        assert (spec.padding, spec.train_size, spec.eval_size) == ("same", 192, 256)
        family = get_preprocessing(spec.preprocessing)
        assert family.mean == pytest.approx((127.5, 102, 76.5))
        assert family.std == pytest.approx((51, 51, 51))
        assert family.interpolation == "bilinear"
        assert family.evaluation(256) == ("border", 269)
    assert read_weights(path, architecture="efficientnet_b0.ra_in1k").spec.preprocessing == "torch"


@pytest.mark.parametrize(
    ("folder", "config", "images"),
    [
        # Its architecture is no reason to forget the folder's tag.
        ("tf_efficientnet_b0.ap_in1k", {}, "tf_efficientnet_b0.ap_in1k"),
        ("mine", {"pretrained_cfg": {"tag": "ap_in1k"}}, "tf_efficientnet_b0.ap_in1k"),
        ("mine", {"architecture": "tf_efficientnet_b0.ap_in1k"}, "tf_efficientnet_b0.ap_in1k"),
        # timm's own choice if there is no tag, as timm takes it.
        ("mine", {}, "tf_efficientnet_b0.ns_jft_in1k"),
        # timm's first config.json had no pretrained_cfg.
        ("mine", {"mean": [0.5] * 3, "std": [0.5] * 3}, "tf_efficientnet_b0.ap_in1k"),
        ("mine", {"pretrained_cfg": {"std": [0.5] * 3}}, None),
    ],
)  # fmt: skip
def test_what_a_config_json_leaves_out(tmp_path, folder, config, images):
    told = ask(
        tmp_path, f"{folder}/model.safetensors", {"architecture": "tf_efficientnet_b0", **config}
    )
    bare, _, tag = (images or "tf_efficientnet_b0.").partition(".")
    expected = timm.networks()[bare][tag] if tag else timm.Images(std=(0.5,) * 3)
    assert (told.architecture, told.images) == (bare, expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architecture": "efficientnet_blur_b0"},
            "it is called 'efficientnet_blur_b0', which is none",
        ),
        (
            {"pretrained_cfg": {"crop_mode": "round"}},
            "crop_mode of preprocessing .* must be center or",
        ),
        (
            {"pretrained_cfg": {"crop_pct": 2}},
            "crop of preprocessing .* must be above 0 and at most 1",
        ),
        ({"pretrained_cfg": {"mean": "grey"}}, "cannot be used: could not convert"),
        ({"pretrained_cfg": {"input_size": [3, 224, 192]}}, "must be square and have 3 channels"),
        ({"pretrained_cfg": {"input_size": 7}}, "cannot be used: "),
        ({"model_args": {"pad_type": "same"}}, "was made by timm with pad_type='same', which"),
        ({"pretrained_cfg": ["x"]}, "pretrained_cfg in .*config.json' must be an object"),
        ({"model_args": "x"}, "model_args in .*config.json' must be an object"),
        ({"global_pool": "max"}, "with global_pool='max', which no model here"),
        ({"model_args": {"global_pool": "max"}}, "with global_pool='max', which no model here"),
        ({"model_args": {"bn_eps": 1e-3}}, "with bn_eps=0.001, which no model here"),
    ],
)
def test_a_config_json_that_cannot_be_used_is_named(tmp_path, config, message):
    with pytest.raises(UsageError, match=message):
        ask(tmp_path, "x/model.safetensors", {"architecture": "efficientnet_b0"} | config)


def test_a_config_json_that_is_none_is_named_and_another_librarys_is_not_read(tmp_path, b0):
    path = put(tmp_path / "efficientnet_b0.ra_in1k" / "x.safetensors", b0, {"architectures": ["X"]})
    assert read_weights(path).spec.preprocessing == "torch"
    (tmp_path / "efficientnet_b0.ra_in1k" / "config.json").write_text('{"archi')
    with pytest.raises(UsageError, match=r"config.json', beside the weights, is no JSON"):
        read_weights(path)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("tf_efficientnetv2_q", "unknown architecture 'tf_efficientnetv2_q': did you mean tf_"),
        (
            "tf_efficientnet_b0.in22k",
            "unknown tag of timm's tf_efficientnet_b0 'in22k': did you mean",
        ),
        ("vit_base_patch16_224", "timm's vit_base_patch16_224 is no EfficientNet"),
    ],
)
def test_the_users_word_must_be_a_name_of_timm(b0, architecture, message):
    with pytest.raises(UsageError, match=message):
        read_weights(str(b0), architecture=architecture)


def test_a_vit_of_unknown_images_asks_too(tmp_path, monkeypatch):
    spec = dataclasses.replace(get_spec("vit-b-32"), width=16, depth=1, num_heads=2)
    monkeypatch.setitem(SPECS, "vit-b-32", spec)
    monkeypatch.setitem(VIT.specs, "vit-b-32", spec)
    places = get_dialect(VIT, "timm").places(spec, 3).values()
    tensors = {place.name: np.zeros(place.shape, np.float32) for place in places}
    path = tmp_path / "vit_base_patch32_384_finetuned.safetensors"
    safetensors.numpy.save_file(tensors, path)
    message = (
        r"which images it expects: give .* such as vit_base_patch32_224 or vit_base_patch32_384"
    )
    with pytest.raises(UsageError, match=message):
        read_weights(str(path))
    weights = read_weights(str(path), "vit-b-32")
    assert weights.spec.preprocessing == "vit"
    assert weights.assumed == "as the model vit-b-32 has it"
    assert read_weights(str(path), preprocessing="deit").spec.preprocessing == "deit"
    assert read_weights(str(path), architecture="vit_base_patch32_224").spec.eval_size == 384


def test_families_names_do_not_meet():
    """A name of one family is none of the other's."""
    for name in timm.networks():
        assert (of(TIMM, name) is None) != (of(TIMM_VIT, name) is None)
    assert EFFICIENTNET is TIMM.family


@pytest.mark.parametrize(
    "file", ["efficientnet_blur_b0.pth", "efficientnet_blur_b0.x-01234567.bin"]
)
def test_another_network_of_the_same_shapes_is_named(tmp_path, file):
    with pytest.raises(UsageError, match=r"it is called 'efficientnet_blur_b0.*, which is none"):
        ask(tmp_path, file)
