"""ViTs' weights: round trips, timm's names, other image sizes, and weights that do not fit."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx

from effnetv2_jax.models import (
    VisionTransformer,
    VisionTransformerSpec,
    create_model,
    get_spec,
    model_info,
)
from effnetv2_jax.models.registry import SPECS
from effnetv2_jax.models.vit_family import grid_of, interpolate
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training.state import create_state, functional
from effnetv2_jax.training.survival.checkpoint import Checkpoints
from effnetv2_jax.weights import layout, load_model, load_weights, read_weights, save_weights
from effnetv2_jax.weights.description import Description
from tests.golden import drawn
from tests.weights.conftest import TIMM_VIT, arrays, make_tiny, same_bits

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "positions.npz"
TINY = VisionTransformerSpec("vit-trial", 4, 16, 2, 2, 16, "vit")


@pytest.fixture(autouse=True)
def trial(monkeypatch):
    """Adds a small model to the list."""
    monkeypatch.setitem(SPECS, TINY.name, TINY)


def make(seed=0, num_classes=10, **fields):
    """Makes a small model with random numbers in every tensor."""
    spec = dataclasses.replace(TINY, **fields)
    model = VisionTransformer(spec, num_classes=num_classes, rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    for variable in layout.variables(model).values():
        variable[...] = jnp.asarray(rng.normal(size=variable.shape), jnp.float32)
    return model


def write(path, model, prefix="", more=None):
    """Writes a model's weights in timm's names."""
    places = TIMM_VIT.places(model.spec, 10)
    tensors = {
        prefix + places[name].name: places[name].to_theirs(array)
        for name, array in arrays(model).items()
    }
    safetensors.numpy.save_file(tensors | (more or {}), path)
    return str(path)


@pytest.mark.parametrize(
    ("file", "naming"),
    [("w.safetensors", "effnetv2_jax"), ("w.safetensors", "timm"), ("folder", "effnetv2_jax")],
)
def test_a_round_trip_keeps_every_bit(tmp_path, file, naming):
    model = make(eval_size=24, norm_epsilon=1e-5, preprocessing="deit")
    save_weights(model, tmp_path / file, naming=naming)
    again, loaded = load_model(str(tmp_path / file))
    assert again.spec == model.spec
    assert same_bits(arrays(again), arrays(model))
    assert loaded.changes == {"eval_size": 24, "norm_epsilon": 1e-5, "preprocessing": "deit"}
    assert not loaded.interpolated
    weights = read_weights(str(tmp_path / file))
    save_weights(weights, tmp_path / "again.safetensors")
    assert same_bits(arrays(load_model(str(tmp_path / "again.safetensors"))[0]), arrays(model))


def test_timms_names(tmp_path):
    save_weights(make(), tmp_path / "x.safetensors", naming="timm")
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes["cls_token"] == (1, 1, 16)
    assert shapes["pos_embed"] == (1, 17, 16)
    assert shapes["patch_embed.proj.weight"] == (16, 3, 4, 4)
    assert shapes["blocks.1.attn.qkv.weight"] == (48, 16)
    assert shapes["blocks.1.mlp.fc1.weight"] == (64, 16)
    assert shapes["head.weight"] == (10, 16)
    assert len(shapes) == 4 + 2 * 12 + 4


def test_a_file_of_deits_own_code(tmp_path):
    """Such a file holds the tensors in a dictionary."""
    model = make()
    other, loaded = load_model(write(tmp_path / "x.safetensors", model, "model."), TINY.name)
    assert same_bits(arrays(other), arrays(model))
    assert loaded.changes == {}


# Other image sizes.


@pytest.fixture(scope="module")
def deit_file(tmp_path_factory):
    """``drawn``'s weights of deit_small_patch16_224."""
    path = tmp_path_factory.mktemp("deit") / "deit_small_patch16_224.safetensors"
    places = TIMM_VIT.places(get_spec("deit-s"), 1000).values()
    tensors = {place.name: drawn.draw(place.name, place.shape) for place in places}
    safetensors.numpy.save_file(tensors, path)
    return str(path)


@pytest.mark.parametrize(("size", "grid"), [(384, 24), (128, 8)])
def test_positions_are_interpolated_as_timm_does(deit_file, forward, size, grid):
    with np.load(GOLDEN) as golden:
        positions, expected = golden[f"{size}/positions"], golden[f"{size}/logits"]
    model = create_model("deit-s", eval_size=size)
    loaded = load_weights(model, deit_file)
    sentence = f"position embedding interpolated from 14 × 14 to {grid} × {grid}"
    assert loaded.interpolated == sentence
    assert sentence in str(loaded)
    assert loaded.spec == model.spec == dataclasses.replace(get_spec("deit-s"), eval_size=size)
    assert loaded.changes == {}
    ours = np.asarray(model.embed.positions[...])[0, :, : positions.shape[1]]
    assert np.abs(ours - positions).max() < 1e-5 * np.abs(positions).max()
    logits = forward(model, drawn.image(size, size))
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_class_token_keeps_its_row():
    positions = np.random.default_rng(0).normal(size=(1, 10, 4)).astype(np.float32)
    larger = interpolate(positions, 5)
    assert larger.shape == (1, 26, 4)
    np.testing.assert_array_equal(larger[:, 0], positions[:, 0])
    np.testing.assert_allclose(interpolate(positions, 3), positions, atol=1e-6)
    np.testing.assert_allclose(interpolate(np.ones((1, 10, 4), np.float32), 7), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "grid"), [((1, 197, 8), 14), ((1, 198, 8), 0), ((1, 1, 8), 0), ((197, 8), 0), ((), 0)]
)
def test_the_grid_of_an_embedding(shape, grid):
    assert grid_of(shape) == grid


@pytest.mark.parametrize("naming", ["effnetv2_jax", "timm"])
def test_strict_refuses_another_image_size_and_changes_nothing(tmp_path, naming):
    save_weights(make(), tmp_path / "x.safetensors", naming=naming)
    model = make(seed=1, eval_size=24)
    before = arrays(model)
    with pytest.raises(UsageError, match=r"position embedding is of 4 × 4 .* the model's of 6 × 6"):
        load_weights(model, str(tmp_path / "x.safetensors"), strict=True)
    assert same_bits(arrays(model), before)
    assert load_weights(model, str(tmp_path / "x.safetensors")).spec.eval_size == 24
    same = make(seed=2)
    load_weights(same, str(tmp_path / "x.safetensors"), strict=True)
    assert same_bits(arrays(same), arrays(make()))


def test_the_model_of_a_file_is_made_for_the_files_images(tmp_path):
    path = write(tmp_path / "x.safetensors", make(eval_size=24))
    model, loaded = load_model(path, TINY.name)
    assert model.spec.eval_size == 24
    assert loaded.changes == {"eval_size": 24}
    assert not loaded.interpolated


def test_another_number_of_classes_and_size_at_once(tmp_path):
    path = write(tmp_path / "x.safetensors", make())
    model = make(seed=1, num_classes=3, eval_size=32)
    before = arrays(model)
    loaded = load_weights(model, path)
    assert loaded.not_loaded == ("classifier.bias", "classifier.kernel")
    assert loaded.interpolated
    after, expected = arrays(model), arrays(make())
    for name in after:
        kept = before if name.startswith("classifier") else expected
        if name != "embed.positions":
            np.testing.assert_array_equal(after[name], kept[name])


# Recognising the network.


def test_models_that_differ_only_in_what_they_expect(tmp_path, monkeypatch):
    monkeypatch.setitem(SPECS, "other", dataclasses.replace(TINY, name="other", eval_size=24))
    path = write(tmp_path / "x.safetensors", make())
    with pytest.raises(UsageError, match=r"x.safetensors' may be vit-trial or other, which differ"):
        load_model(path)
    assert load_model(path, "other")[1].spec.name == "other"


def test_timms_name_of_the_file_says_which(deit_file, tmp_path, monkeypatch):
    monkeypatch.setitem(SPECS, "vit-s", dataclasses.replace(get_spec("deit-s"), name="vit-s"))
    weights = read_weights(deit_file)
    assert (weights.spec.name, weights.num_classes) == ("deit-s", 1000)
    other = pathlib.Path(deit_file).rename(tmp_path / "mine.safetensors")
    try:
        with pytest.raises(UsageError, match="may be deit-s or vit-s"):
            read_weights(str(other))
        weights = read_weights(str(other), architecture="deit_small_patch16_224.fb_in1k")
        assert weights.spec.name == "deit-s"
    finally:
        other.rename(deit_file)


@pytest.mark.parametrize(
    ("model", "changes", "name"),
    [
        ("vit-b-32", {}, "vit_base_patch32_384"),
        ("vit-b-16", {"eval_size": 224}, "vit_base_patch16_224"),
        ("vit-b-16", {"eval_size": 256}, None),
        ("vit-l-16", {}, "vit_large_patch16_384"),
        ("deit-s", {}, "deit_small_patch16_224"),
        ("deit-s", {"eval_size": 384}, "vit_small_patch16_384"),
        ("deit-s", {"norm_epsilon": 1e-5}, None),
        ("deit-b", {}, "deit_base_patch16_224"),
        ("deit-b", {"eval_size": 384}, "deit_base_patch16_384"),
        ("deit-b-384", {}, "deit_base_patch16_384"),
        ("deit-b-384", {"num_heads": 6}, None),
    ],
)
def test_the_network_of_timm_that_computes_the_same(model, changes, name):
    assert TIMM_VIT.names.their_model(dataclasses.replace(get_spec(model), **changes)) == name


def test_a_model_takes_over_the_epsilon_of_its_weights(tmp_path, forward):
    # The epsilon only shows with small numbers.
    trained = make()
    trained.embed.patches.kernel[...] = trained.embed.patches.kernel[...] * 1e-3
    for name in ("class_token", "positions"):
        variable = getattr(trained.embed, name)
        variable[...] = variable[...] * 1e-3
    model = make(seed=1, norm_epsilon=1e-2)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
    loaded = load_weights(model, write(tmp_path / "x.safetensors", trained))
    assert loaded.changes == {"norm_epsilon": 1e-6}
    np.testing.assert_array_equal(forward(model, images), forward(trained, images))
    other = make(norm_epsilon=1e-2)
    nnx.update(other, nnx.state(trained, nnx.Param))
    assert not np.allclose(forward(other, images), forward(trained, images), rtol=1e-2)


# Weights that do not fit.


def test_another_kind_of_network_is_named(tmp_path):
    path = write(tmp_path / "x.safetensors", make())
    with pytest.raises(
        UsageError, match=r"does not fit efficientnetv2-tiny: it is another .* looks like vit-trial"
    ):
        load_weights(make_tiny(), path)
    save_weights(make_tiny(), tmp_path / "y.safetensors")
    with pytest.raises(
        UsageError, match=r"fit vit-trial: it is another .* it looks like efficientnetv2-tiny"
    ):
        load_weights(make(), str(tmp_path / "y.safetensors"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"norm_pre.weight": (16,)}, r"tensor norm_pre.weight .* has no place in the model"),
        ({"head_dist.weight": (10, 16)}, r"tensor head_dist.weight .* has no place"),
        # As a distilled DeiT has one token more.
        ({"pos_embed": (1, 18, 16)}, r"tensor pos_embed has shape \(1, 18, 16\) there and \(1, 17"),
        ({"blocks.2.norm1.weight": (16,)}, r"tensor blocks.2.norm1.weight .* has no place"),
    ],
)
def test_vits_that_compute_otherwise_are_refused(tmp_path, more, message):
    zeros = {name: np.zeros(shape, np.float32) for name, shape in more.items()}
    path = write(tmp_path / "x.safetensors", make(), more=zeros)
    model = make(seed=1)
    before = arrays(model)
    with pytest.raises(UsageError, match=message):
        load_weights(model, path)
    assert same_bits(arrays(model), before)


def test_other_heads_do_not_show_in_shapes(tmp_path):
    save_weights(make(num_heads=4), tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match=r"another vit-trial, .* but with other num_heads"):
        load_weights(make(), str(tmp_path / "x.safetensors"))
    # But on its own it comes back as what it is.
    assert load_model(str(tmp_path / "x.safetensors"))[1].spec.num_heads == 4


# Descriptions and runs.


def test_a_description_says_of_which_kind_it_is():
    for name in ("vit-b-16", "efficientnetv2-s"):
        about = Description(get_spec(name), 10, None, "here")
        assert Description.from_json(about.to_json()) == about
    values = json.loads(Description(get_spec("efficientnetv2-s"), 10, None, "here").to_json())
    assert values["kind"] == "efficientnet"
    # As files were written before there were two.
    del values["kind"]
    assert Description.from_json(json.dumps(values)).spec == get_spec("efficientnetv2-s")
    with pytest.raises(UsageError, match="its description is not one that this version"):
        Description.from_json(json.dumps(values | {"kind": "resnet"}))


def test_the_weights_of_a_run(tmp_path):
    model = make(eval_size=24)
    _, params, batch_stats = functional(model)
    state = create_state(params, batch_stats, optax.sgd(0.1))
    model.spec = dataclasses.replace(model.spec, norm_epsilon=1e-5)
    config = {
        # A padding is of no meaning here.
        "model": {"name": TINY.name, "norm_epsilon": 1e-5, "padding": "symmetric"},
        "data": {"name": "letters", "preprocessing": ""},
        "eval_image_size": 24,
    }
    checkpoints = Checkpoints(tmp_path)
    record = {"config": config, "class_names": list("abcdefghij")}
    checkpoints.save(dataclasses.replace(state, step=jax.numpy.int32(3)), record)
    checkpoints.close()
    again, loaded = load_model(str(tmp_path))
    assert again.spec == model.spec
    assert same_bits(arrays(again), arrays(model))
    assert "a run of vit-trial on letters, step 3" in str(loaded)


def test_tensors_are_the_parameters():
    tensors = layout.tensors(get_spec("deit-b"), 1000).values()
    assert sum(int(np.prod(x.shape)) for x in tensors) == model_info("deit-b").parameters
