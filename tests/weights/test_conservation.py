"""Every tensor of a file is loaded, or reported, or one of those that a training keeps."""

import os
import re

import h5py
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from effnetv2_jax.models.registry import abstract_model, build
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import load_model, load_weights, read_weights
from effnetv2_jax.weights.containers.files import open_tensors
from effnetv2_jax.weights.load import put
from tests.golden.drawn import draw
from tests.weights.conftest import TIMM, arrays, make_tiny, same_bits

# The names of a training's tensors, as those who write them call them.
OF_TRAINING = re.compile(
    r".*num_batches_tracked|optimizer(_weights|/vars)?[./].*|.*seed_generator_state"
)

# timm has no tiny network; the name says only how it computes.
TENSORFLOW = {"architecture": "tf_efficientnetv2_s"}


@pytest.fixture(scope="module")
def keras():
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    return keras


def fill(network):
    """Gives all weights but an input's mean and variance numbers that differ."""
    for layer in network.layers:
        for weight in layer.weights:
            path = f"{layer.name}/{weight.path.rsplit('/', 1)[1]}"
            if not layer.name.startswith("normalization"):
                weight.assign(draw(path, tuple(weight.shape)))


@pytest.fixture(scope="module")
def with_heads(keras, tmp_path_factory):
    """Folder with a user's classifiers on Keras's V2-B0, and the image and logits of it."""
    folder = tmp_path_factory.mktemp("heads")
    base = keras.applications.EfficientNetV2B0(
        include_top=False,
        weights=None,
        input_shape=(64, 64, 3),
        pooling="avg",
        include_preprocessing=False,
    )
    fill(base)
    dense = keras.layers.Dense(5, name="mine")
    flat = keras.Model(base.input, dense(base.output))
    flat.save(folder / "flat.h5")
    nested = keras.Sequential(
        [keras.Input((64, 64, 3)), base, keras.layers.Dropout(0.2), dense], name="outer"
    )
    nested.compile("adam", "mse")
    for ending in (".h5", ".keras"):
        nested.save(folder / f"nested{ending}")
    nested.save_weights(folder / "nested.weights.h5")
    image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    return folder, image, np.asarray(flat(image))


def read_all(path, **arguments):
    """Reads weights, and checks that all tensors of the file are accounted for."""
    with open_tensors(path) as tensors:
        names = set(tensors.shapes)
    weights = read_weights(str(path), **arguments)
    reported, aside = set(weights.beside), set(weights.of_training)
    assert all(OF_TRAINING.fullmatch(name) for name in aside), aside
    assert not reported & aside and reported | aside <= names
    normalizing = {name for name in names if name.startswith("normalization")}
    assert len(names) == len(weights.tensors) + len(reported) + len(aside) + len(normalizing)
    return weights


def load(weights):
    model = build(weights.spec, num_classes=weights.num_classes, rngs=nnx.Rngs(0))
    return model, put(weights, model)


@pytest.mark.parametrize("file", ["flat.h5", "nested.h5", "nested.keras", "nested.weights.h5"])
def test_a_users_classifier_in_keras_is_reported_and_taken_if_named(with_heads, forward, file):
    folder, image, logits = with_heads
    weights = read_all(folder / file)
    assert weights.num_classes == 0
    layer = "layers/dense/vars" if file in ("nested.keras", "nested.weights.h5") else "mine"
    assert {name.rpartition("/")[0] for name in weights.beside} == {layer}
    with pytest.raises(
        UsageError, match=rf"{layer}/.* \(no part of the network .*, give classifier='{layer}' if"
    ):
        put(weights, abstract_model("efficientnetv2-b0", num_classes=0), strict=True)
    weights = read_all(folder / file, classifier=layer)
    assert weights.num_classes == 5 and not weights.beside
    if file != "nested.h5":
        return
    model, loaded = load(weights)
    assert not loaded.not_loaded
    error = np.abs(forward(model, image) - logits).max() / np.abs(logits).max()
    assert error < 1e-5


def test_a_users_classifier_in_pytorch(tmp_path):
    tiny = make_tiny(num_classes=0)
    path = tmp_path / "x.safetensors"
    places = TIMM.places(tiny.spec, 0)
    backbone = {
        f"backbone.{places[x].name}": places[x].to_theirs(a) for x, a in arrays(tiny).items()
    }
    more = {
        "backbone.bn1.num_batches_tracked": np.array(3),
        "optimizer.state.0.exp_avg": np.ones(3, np.float32),
    }
    width = places["head.conv.kernel"].shape[0]
    head = {"head.weight": np.ones((5, width), np.float32), "head.bias": np.ones(5, np.float32)}
    stranger = {"norm.logit_scale": np.array(1.0, np.float32)}
    safetensors.numpy.save_file(backbone | more | head | stranger, path)
    _, loaded = load(read_all(path, **TENSORFLOW))
    assert loaded.not_loaded == ("head.bias", "head.weight", "norm.logit_scale")
    assert loaded.of_training == tuple(sorted(more))
    with pytest.raises(UsageError, match=r"does not fit: head.bias, head.weight, norm.logit_scale"):
        load_weights(make_tiny(num_classes=0), str(path), strict=True, **TENSORFLOW)
    model, loaded = load(read_all(path, classifier="head", **TENSORFLOW))
    assert loaded.num_classes == 5 and loaded.not_loaded == ("norm.logit_scale",)
    np.testing.assert_array_equal(model.classifier.kernel[...], np.ones((width, 5)))
    with pytest.raises(UsageError, match=r"has no classifier 'hat': no hat.weight"):
        load_model(str(path), classifier="hat", **TENSORFLOW)
    head["head.weight"] = np.ones((5, width + 1), np.float32)
    safetensors.numpy.save_file(backbone | head, path)
    with pytest.raises(UsageError, match=r"'head' in .* does not classify the features of"):
        load_model(str(path), classifier="head", **TENSORFLOW)


def test_two_networks_that_are_no_averages_of_each_other_are_not_one(tmp_path):
    tiny = make_tiny()
    path = tmp_path / "x.safetensors"
    places = TIMM.places(tiny.spec, 10)
    one = {places[x].name: places[x].to_theirs(a) for x, a in arrays(tiny).items()}

    def write(*prefixes):
        both = {prefix + name: x for prefix in prefixes for name, x in one.items()}
        safetensors.numpy.save_file(both, path)
        return load_model(str(path), **TENSORFLOW)[1]

    loaded = write("student.", "teacher.")
    assert len(loaded.not_loaded) == len(one) and not loaded.of_training
    assert f"and {len(one) - 6} more not loaded" in str(loaded)
    loaded = write("state_dict.", "state_dict_ema.")
    assert len(loaded.of_training) == len(one) and not loaded.not_loaded


def test_two_layers_of_one_name_are_both_kept(tmp_path):
    path = tmp_path / "x.h5"
    names = ("a/x/a/kernel", "a/y/a/kernel", "b/a/kernel:0", "model_weights/c/c/kernel")
    with h5py.File(path, "w") as file:
        for i, name in enumerate(names):
            file[name] = np.full(2, i)
    with open_tensors(path) as tensors:
        assert {int(tensors.read(name)[0]) for name in tensors.shapes} == {0, 1, 2, 3}
        assert "c/kernel" in tensors.shapes


def test_the_mean_and_variance_of_keras_v1_are_the_files(keras, forward, tmp_path):
    """A network that was trained from scratch has its own."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 64, 64, 3)) * np.array([1.0, 0.5, 0.3])
    pixels = pixels.astype(np.float32)
    network = keras.applications.EfficientNetB0(
        weights=None, input_shape=(64, 64, 3), classes=5, classifier_activation=None
    )
    fill(network)
    (layer,) = [x for x in network.layers if x.name.startswith("normalization")]
    layer.adapt(pixels / 255)
    expected = np.asarray(network(pixels))
    network.save(tmp_path / "x.h5")
    network.save_weights(tmp_path / "x.weights.h5")
    model, loaded = load_model(str(tmp_path / "x.h5"))
    assert not loaded.not_loaded
    family = get_preprocessing(model.spec.preprocessing)
    assert family.name.startswith("v1,mean=") and loaded.changes == {"preprocessing": family.name}
    assert loaded.assumed == "as the file's normalization layer says"
    assert read_weights(str(tmp_path / "x.weights.h5")).spec == model.spec
    weights = read_all(tmp_path / "x.h5", preprocessing="v1")  # the user's word counts first
    assert (weights.spec.preprocessing, weights.assumed) == ("v1", "as you say")
    image = (pixels - np.float32(family.mean)) / np.float32(family.std)
    error = np.abs(forward(model, image) - expected).max() / np.abs(expected).max()
    assert error < 1e-5
    for mean, variance, name in (
        # Trained from scratch, but never adapted.
        ((0, 0, 0), (1, 1, 1), "v1,mean=0.0,std=255.0"),
        # As Keras publishes them, with the square root taken once more behind the layer.
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "v1"),
    ):
        with h5py.File(tmp_path / "x.h5", "r+") as file:
            group = file["model_weights"][layer.name][layer.name]
            group["mean"][...], group["variance"][...] = mean, variance
        assert read_weights(str(tmp_path / "x.h5")).spec.preprocessing == name


def test_moving_averages_keep_every_bit_beside_a_training(tmp_path):
    """Counters and slots change nothing in what is read."""
    tiny = make_tiny()
    path = tmp_path / "x.safetensors"
    places = TIMM.places(tiny.spec, 10)
    one = {places[x].name: places[x].to_theirs(a) for x, a in arrays(tiny).items()}
    safetensors.numpy.save_file(one | {"optimizer.state.0.step": np.ones(1)}, path)
    assert same_bits(arrays(load_model(str(path), **TENSORFLOW)[0]), arrays(tiny))
