"""A small network that compiles fast and has every kind of block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effnetv2_jax.models import EfficientNet, EfficientNetSpec, get_spec


@pytest.fixture(scope="session")
def tiny_spec() -> EfficientNetSpec:
    """Fused-MBConv without and with expansion, then MBConv with SE. Two of the blocks skip."""
    return get_spec("efficientnetv2-tiny")


@pytest.fixture
def tiny_model(tiny_spec) -> EfficientNet:
    """A new model for every test, because training changes it."""
    return EfficientNet(tiny_spec, num_classes=10, rngs=nnx.Rngs(0))


@pytest.fixture(scope="session")
def tiny_images() -> jax.Array:
    # From NumPy: jax.random.normal takes seconds to compile for every shape.
    return jnp.asarray(np.random.default_rng(1).normal(size=(8, 16, 16, 3)), jnp.float32)
