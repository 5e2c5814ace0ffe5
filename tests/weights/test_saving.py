"""Weights that are saved and loaded again are the same to the last bit."""

import contextlib
import dataclasses
import json
import os
import pathlib

import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors
from flax import nnx

from effnetv2_jax.models import get_spec
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import load_model, load_weights, read_weights, save_weights
from effnetv2_jax.weights.containers import folders
from effnetv2_jax.weights.containers.folders import open_weights
from tests.odd_names import NAMES as NAMES_OF_PATHS
from tests.weights.conftest import TIMM, arrays, make_tiny, same_bits

NAMES = tuple("abcdefghij")


@pytest.mark.parametrize(
    ("file", "naming"),
    [
        ("w.safetensors", "effnetv2_jax"),
        ("efficientnetv2_tiny.safetensors", "timm"),
        ("folder", "effnetv2_jax"),
    ],
)
def test_a_round_trip_keeps_every_bit(tiny_model, tmp_path, file, naming):
    save_weights(tiny_model, tmp_path / "deep" / file, naming=naming)
    other = make_tiny(seed=1)
    assert not same_bits(arrays(other), arrays(tiny_model))
    loaded = load_weights(other, str(tmp_path / "deep" / file))
    assert loaded.tensors == len(arrays(tiny_model))
    assert loaded.not_loaded == ()
    assert same_bits(arrays(other), arrays(tiny_model))
    # And what was read goes out and in as well.
    weights = read_weights(str(tmp_path / "deep" / file))
    save_weights(weights, tmp_path / "again.safetensors")
    again, _ = load_model(str(tmp_path / "again.safetensors"))
    assert same_bits(arrays(again), arrays(tiny_model))


@pytest.mark.parametrize("ending", ["", ".safetensors"])
@pytest.mark.parametrize("name", NAMES_OF_PATHS.values(), ids=NAMES_OF_PATHS)
def test_files_and_folders_may_have_any_name(tiny_model, tmp_path, name, ending):
    name = name[: len(name) - len(ending)] + ending if len(name) == 255 else name + ending
    save_weights(tiny_model, tmp_path / name)
    assert same_bits(arrays(load_model(str(tmp_path / name))[0]), arrays(tiny_model))
    assert os.listdir(tmp_path) == [pathlib.PurePath(name).parts[0]]


def test_a_folder_that_is_not_read_back_as_it_was_written_never_gets_its_name(
    tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(folders, "plain_path", contextlib.nullcontext)
    (tmp_path / "[a]").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        save_weights(tiny_model, tmp_path / "[a]" / "w")
    assert os.listdir(tmp_path / "[a]") == []


def test_a_url_is_not_taken_for_a_path(tiny_model):
    with pytest.raises(UsageError, match="'gs://bucket/w' is a URL: mount the bucket"):
        save_weights(tiny_model, "gs://bucket/w")


@pytest.mark.parametrize("file", ["w.safetensors", "folder"])
def test_the_network_is_written_beside_its_weights(tmp_path, file):
    model = make_tiny(padding="symmetric", bn_epsilon=1e-5, eval_size=48)
    save_weights(model, tmp_path / file, class_names=NAMES)
    loaded_model, loaded = load_model(str(tmp_path / file))
    assert loaded_model.spec == model.spec
    assert loaded.class_names == NAMES
    assert loaded.changes == {"padding": "symmetric", "bn_epsilon": 1e-5, "eval_size": 48}
    assert "with padding symmetric, bn_epsilon 1e-05, eval_size 48" in str(loaded)


def test_a_network_of_ones_own_comes_back_without_being_named(tmp_path):
    """The description holds the whole spec."""
    groups = get_spec("efficientnetv2-tiny").groups[:2]
    model = make_tiny(groups=groups, activation="relu6")
    save_weights(model, tmp_path / "own.safetensors")
    again, _ = load_model(str(tmp_path / "own.safetensors"))
    assert again.spec == model.spec
    assert same_bits(arrays(again), arrays(model))
    with pytest.raises(UsageError, match=r"does not fit efficientnetv2-tiny: tensor "):
        load_weights(make_tiny(), str(tmp_path / "own.safetensors"))


@pytest.mark.parametrize("field", ["activation", "groups"])
def test_what_shapes_do_not_show_has_to_be_the_same(tmp_path, field):
    groups = get_spec("efficientnetv2-tiny").groups
    other = {
        "activation": "relu6",
        "groups": (dataclasses.replace(groups[0], stride=2), *groups[1:]),
    }
    save_weights(make_tiny(**{field: other[field]}), tmp_path / "x.safetensors")
    message = f"does not fit efficientnetv2-tiny: .* same shapes but with other {field}"
    with pytest.raises(UsageError, match=message):
        load_weights(make_tiny(), str(tmp_path / "x.safetensors"))
    assert getattr(load_model(str(tmp_path / "x.safetensors"))[0].spec, field) == other[field]


def test_others_find_the_preprocessing_in_the_metadata(tiny_file):
    with safetensors.safe_open(tiny_file, "np") as file:
        about = json.loads(file.metadata()["effnetv2_jax"])
        assert file.metadata()["format"] == "flax"
        assert "blocks.1.expand.conv.kernel" in set(file.keys())
    assert about["preprocessing"]["mean"] == [128.0, 128.0, 128.0]
    assert about["spec"]["eval_size"] == 32
    assert about["num_classes"] == 10


def test_an_orbax_folder_is_read_by_orbax_alone(tiny_model, tmp_path):
    save_weights(tiny_model, tmp_path / "folder")
    tree = ocp.PyTreeCheckpointer().restore(tmp_path / "folder" / "weights")
    kernel = tree["params"]["blocks"]["1"]["expand"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, tiny_model.blocks[1].expand.conv.kernel[...])
    mean = tree["batch_stats"]["stem"]["norm"]["mean"]
    np.testing.assert_array_equal(mean, tiny_model.stem.norm.mean[...])


def test_timms_names_have_the_networks_name_beside_them(tmp_path):
    save_weights(make_tiny(), tmp_path / "x.safetensors", naming="timm")
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as file:
        assert file.metadata()["format"] == "pt"
        assert file.get_slice("blocks.1.0.conv_exp.weight").get_shape() == [32, 8, 3, 3]
    # What timm has no word for comes back all the same.
    model = make_tiny(padding="symmetric")
    save_weights(model, tmp_path / "y.safetensors", naming="timm")
    assert load_model(str(tmp_path / "y.safetensors"))[0].spec == model.spec


@pytest.mark.parametrize(
    ("model", "changes", "name"),
    [
        ("efficientnetv2-s", {}, "tf_efficientnetv2_s"),
        ("efficientnetv2-s", {"padding": "symmetric", "bn_epsilon": 1e-5}, "efficientnetv2_s"),
        ("efficientnetv2-s", {"padding": "symmetric"}, None),
        ("efficientnetv2-b0", {}, "tf_efficientnetv2_b0"),
        ("efficientnetv2-b0", {"padding": "symmetric", "bn_epsilon": 1e-5}, None),
        ("efficientnet-l2", {}, "tf_efficientnet_l2"),
        ("efficientnet-lite4", {}, "tf_efficientnet_lite4"),
        ("efficientnetv2-rw-t", {}, "efficientnetv2_rw_t"),
        ("efficientnetv2-tiny", {}, None),
        ("efficientnet-b4-fused-1-3", {}, None),
    ],
)
def test_the_network_of_timm_that_computes_the_same(model, changes, name):
    assert TIMM.names.their_model(dataclasses.replace(get_spec(model), **changes)) == name


def test_an_existing_file_is_replaced_only_on_request(tiny_model, tiny_file):
    before = tiny_file.read_bytes()
    with pytest.raises(UsageError, match=r"tiny.safetensors' exists already"):
        save_weights(make_tiny(seed=1), tiny_file)
    assert tiny_file.read_bytes() == before
    save_weights(make_tiny(seed=1), tiny_file, overwrite=True)
    assert tiny_file.read_bytes() != before
    assert os.listdir(tiny_file.parent) == ["tiny.safetensors"]


def test_a_folder_is_never_replaced(tiny_model, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        save_weights(tiny_model, tmp_path / "folder", overwrite=True)


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("x.safetensors", {"naming": "tim"}, "unknown naming 'tim': did you mean timm"),
        ("folder", {"naming": "timm"}, "naming 'timm' needs a file that ends in .safetensors"),
        ("x.safetensors", {"class_names": ("a", "b")}, "got 2 class_names for 10 classes"),
        ("/proc/x/y.safetensors", {}, "'/proc/x/y.safetensors' cannot be written"),
    ],
)
def test_what_cannot_be_written_is_named(tiny_model, tmp_path, path, arguments, message):
    with pytest.raises(UsageError, match=message):
        save_weights(tiny_model, tmp_path / path, **arguments)
    assert os.listdir(tmp_path) == []


def test_a_broken_orbax_folder_is_named(tiny_model, tmp_path):
    save_weights(tiny_model, tmp_path / "folder")
    for file in (tmp_path / "folder" / "weights").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UsageError, match="cannot be read"), open_weights(tmp_path / "folder"):
        pass


def test_a_model_in_bfloat16_has_float32_weights(tmp_path):
    import jax.numpy as jnp

    save_weights(make_tiny(dtype=jnp.bfloat16), tmp_path / "x.safetensors")
    weights = read_weights(str(tmp_path / "x.safetensors"))
    assert {x.dtype for x in weights.tensors.values()} == {np.dtype(np.float32)}
    model, _ = load_model(str(tmp_path / "x.safetensors"), dtype=jnp.bfloat16)
    assert isinstance(model.stem.conv.kernel, nnx.Param)
    assert model.stem.conv.dtype == jnp.bfloat16
