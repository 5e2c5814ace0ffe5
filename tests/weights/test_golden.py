"""Other people's networks and ours compute the same from the same weights in their files.

``tests/golden/make_logits.py`` filled theirs with ``drawn``'s weights and wrote down the logits.
"""

import pathlib

import h5py
import numpy as np
import pytest
import safetensors.numpy

from effnetv2_jax.models import Spec, VisionTransformerSpec, get_spec
from effnetv2_jax.weights import load_model
from tests.golden import drawn
from tests.weights.conftest import KERAS_V1, KERAS_V2, TIMM, TIMM_VIT, TORCHVISION

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "logits.npz"
# Exchanging any one tensor moves the logits by 7e-5 at the least; errors are 2e-6 at the most.
TOLERANCE = 1e-5

CASES = {
    "timm/tf_efficientnetv2_b0": ("efficientnetv2-b0", TIMM),
    "timm/tf_efficientnetv2_s": ("efficientnetv2-s", TIMM),
    "timm/tf_efficientnetv2_l": ("efficientnetv2-l", TIMM),
    "timm/tf_efficientnet_b0": ("efficientnet-b0", TIMM),
    "timm/tf_efficientnet_b4": ("efficientnet-b4", TIMM),
    "timm/tf_efficientnet_lite0": ("efficientnet-lite0", TIMM),
    "timm/efficientnet_b0": ("efficientnet-b0", TIMM),
    "timm/efficientnetv2_rw_t": ("efficientnetv2-rw-t", TIMM),
    "timm/deit_small_patch16_224": ("deit-s", TIMM_VIT),
    "timm/vit_base_patch32_384": ("vit-b-32", TIMM_VIT),
    "torchvision/efficientnet_v2_s": ("efficientnetv2-s", TORCHVISION),
    "torchvision/efficientnet_b0": ("efficientnet-b0", TORCHVISION),
    "torchvision/efficientnet_b5": ("efficientnet-b5", TORCHVISION),
    "keras/EfficientNetV2B0": ("efficientnetv2-b0", KERAS_V2),
    "keras/EfficientNetV2S": ("efficientnetv2-s", KERAS_V2),
    "keras/EfficientNetB0": ("efficientnet-b0", KERAS_V1),
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def write(path, library, tensors):
    if library != "keras":
        safetensors.numpy.save_file(tensors, path)
        return
    with h5py.File(path, "w") as file:
        for name, array in tensors.items():
            layer = name.partition("/")[0]
            file[f"{layer}/{name}:0"] = array


def picture(spec: Spec) -> np.ndarray:
    """Returns an image; a ViT takes only images of its own size."""
    sizes = (spec.eval_size,) * 2 if isinstance(spec, VisionTransformerSpec) else ()
    return drawn.image(*sizes)


def test_every_golden_case_is_tested(golden):
    assert {key for key in golden if not key.endswith("/names")} == CASES.keys()


def places_of(case):
    model, dialect = CASES[case]
    return dialect.places(get_spec(model), 1000).values()


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_are_theirs(golden, case):
    shapes = {place.name: place.shape for place in places_of(case)}
    assert drawn.digest(shapes) == str(golden[f"{case}/names"])


# 10 to 30 seconds each; smaller networks of the same library and padding have the same blocks.
SLOW = (
    "timm/tf_efficientnetv2_s",
    "timm/tf_efficientnetv2_l",
    "timm/tf_efficientnet_b4",
    "timm/efficientnetv2_rw_t",
    "timm/vit_base_patch32_384",
    "torchvision/efficientnet_b5",
    "keras/EfficientNetV2S",
)


@pytest.mark.parametrize(
    "case", [pytest.param(x, marks=[pytest.mark.slow] if x in SLOW else []) for x in CASES]
)
def test_logits_are_theirs(golden, tmp_path, forward, case):
    model, _ = CASES[case]
    library, name = case.split("/")
    shapes = {place.name: place.shape for place in places_of(case)}
    path = tmp_path / f"{name}.safetensors"
    write(path, library, {name: drawn.draw(name, shape) for name, shape in shapes.items()})
    architecture = name if library == "timm" else None
    network, loaded = load_model(str(path), model, architecture=architecture)
    assert loaded.tensors == len(shapes)
    logits, expected = forward(network, picture(network.spec)), golden[case]
    assert expected.std() > 0.1
    assert np.abs(logits - expected).max() < TOLERANCE * np.abs(expected).max()
