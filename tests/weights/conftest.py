"""Small networks whose tensors all differ, and their files."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effnetv2_jax.models import create_model
from effnetv2_jax.models.registry import FAMILIES
from effnetv2_jax.weights import layout, save_weights
from effnetv2_jax.weights.dialects.dialect import get_dialect

EFFICIENTNET, VIT = FAMILIES
OURS, TIMM, TORCHVISION, KERAS_V1, KERAS_V2 = (
    get_dialect(EFFICIENTNET, library)
    for library in (
        "effnetv2_jax",
        "timm",
        "torchvision",
        "keras.applications (V1)",
        "keras.applications (V2)",
    )
)
TIMM_VIT = get_dialect(VIT, "timm")


def make_tiny(seed: int = 0, **arguments):
    """A small network with random batch norms too."""
    arguments = {"num_classes": 10, **arguments}
    model = create_model("efficientnetv2-tiny", rngs=nnx.Rngs(seed), **arguments)
    rng = np.random.default_rng(seed)
    for name, variable in layout.variables(model).items():
        if ".norm." in name or name.endswith("bias"):
            low, high = (0.5, 1.5) if name.endswith(("scale", "var")) else (-0.2, 0.2)
            variable[...] = jnp.asarray(rng.uniform(low, high, variable.shape), jnp.float32)
    return model


def arrays(model) -> dict[str, np.ndarray]:
    return {name: np.asarray(x[...]) for name, x in layout.variables(model).items()}


def same_bits(left, right) -> bool:
    left, right = dict(left), dict(right)
    return left.keys() == right.keys() and all(
        x.dtype == right[name].dtype and x.tobytes() == right[name].tobytes()
        for name, x in left.items()
    )


@pytest.fixture
def tiny_model():
    return make_tiny()


@pytest.fixture
def tiny_file(tiny_model, tmp_path):
    """Its weights in our names."""
    path = tmp_path / "tiny.safetensors"
    save_weights(tiny_model, path, class_names=tuple("abcdefghij"))
    return path


@pytest.fixture(scope="session")
def forward():
    return nnx.jit(lambda model, images: model(images))
