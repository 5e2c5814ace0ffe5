"""Files that Keras writes of its own networks."""

import os
import shutil
import zipfile

import h5py
import numpy as np
import pytest

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import load_model, read_weights
from effnetv2_jax.weights.containers.hdf5 import open_hdf5
from tests.golden.drawn import draw

IMAGE = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def keras():
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    return keras


@pytest.fixture(scope="module")
def saved(keras, tmp_path_factory):
    """Folder of files, and the logits of the network in them by its model's name."""
    folder = tmp_path_factory.mktemp("keras")
    logits = {}
    options = {"weights": None, "classes": 10, "classifier_activation": None}
    for name, make, more in (
        ("efficientnetv2-b0", "EfficientNetV2B0", {"include_preprocessing": False}),
        ("efficientnet-b0", "EfficientNetB0", {}),
    ):
        network = getattr(keras.applications, make)(input_shape=(64, 64, 3), **options, **more)
        for layer in network.layers:
            for weight in layer.weights:
                path = f"{layer.name}/{weight.path.rsplit('/', 1)[1]}"
                if not layer.name.startswith("normalization"):
                    weight.assign(draw(path, tuple(weight.shape)))
        network.save(folder / f"{name}.keras")
        network.save(folder / f"{name}.h5")
        network.save_weights(folder / f"{name}.weights.h5")
        if more:
            logits[name] = np.asarray(network(IMAGE))
        else:
            # V1 has preprocessing in front.
            start = network.get_layer("stem_conv_pad").input
            logits[name] = np.asarray(keras.Model(start, network.output)(IMAGE))
    return folder, logits


@pytest.mark.parametrize("model", ["efficientnetv2-b0", "efficientnet-b0"])
@pytest.mark.parametrize("ending", [".keras", ".h5", ".weights.h5"])
def test_a_file_computes_what_keras_does(saved, forward, model, ending):
    folder, logits = saved
    network, loaded = load_model(str(folder / f"{model}{ending}"))
    assert loaded.spec.name == model
    assert "keras.applications" in str(loaded)
    assert np.std(logits[model]) > 0.1
    error = np.abs(forward(network, IMAGE) - logits[model]).max() / np.abs(logits[model]).max()
    assert error < 1e-5


def test_the_files_of_keras_2_have_other_names(saved, tmp_path):
    """Published files have no folder for the model, and kernel:0 and depthwise_kernel:0."""
    folder, _ = saved
    path = tmp_path / "efficientnetb0.h5"
    with h5py.File(folder / "efficientnet-b0.h5") as new, h5py.File(path, "w") as old:
        for layer, group in new["model_weights"].items():
            for name, weight in group.get(layer, {}).items():
                old_name = f"depthwise_{name}" if layer.endswith("dwconv") else name
                old[f"{layer}/{layer}/{old_name}:0"] = weight[()]
    assert "block1a_dwconv/block1a_dwconv/depthwise_kernel:0" in h5py.File(path)
    found = read_weights(str(path)).tensors
    expected = read_weights(str(folder / "efficientnet-b0.h5")).tensors
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("ending", [".keras", ".h5", ".weights.h5"])
def test_a_file_that_is_cut_short_is_named(saved, tmp_path, ending):
    folder, _ = saved
    path = tmp_path / f"x{ending}"
    data = (folder / f"efficientnetv2-b0{ending}").read_bytes()
    for length in (100, len(data) // 2, len(data) - 30):
        path.write_bytes(data[:length])
        with pytest.raises(UsageError, match=rf"x{ending}' is .*damaged"):
            read_weights(str(path))


def test_damaged_bytes_are_an_error_of_one_kind(tmp_path):
    """h5py has many types of errors for them."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for i in range(4):
            file.create_dataset(f"layers/conv2d_{i}/vars/0", data=np.ones((3, 4), np.float32))
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            with open_hdf5(path) as tensors:
                for name in tensors.shapes:
                    tensors.read(name)
        except UsageError:
            refused += 1
    assert refused > 3


def test_only_the_weights_of_an_archive_are_read(saved, tmp_path):
    """A config may name any class and any code."""
    path = tmp_path / "x.keras"
    shutil.copy(saved[0] / "efficientnetv2-b0.keras", path)
    whole = read_weights(str(path)).tensors
    with zipfile.ZipFile(path) as archive:
        weights = archive.read("model.weights.h5")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", '{"class_name": "Lambda", "config": "os.system"}')
        archive.writestr("../../evil", "x")
        archive.writestr("model.weights.h5", weights)
    found = read_weights(str(path)).tensors
    assert all(np.array_equal(found[name], x) for name, x in whole.items())
