"""Models of which only shapes matter, made in a moment."""

import jax
from flax import nnx

from effnetv2_jax.models import EfficientNet, create_model


class OneKey:
    """In place of nnx.Rngs, whose counting under a trace takes time quadratic in its calls."""

    def __init__(self):
        self.key = jax.random.key(0)

    def params(self) -> jax.Array:
        return self.key

    dropout = params

    def __contains__(self, stream: str) -> bool:
        return True


def abstract(name: str, **keywords) -> EfficientNet:
    """The shapes of a model, of which initial values do not matter."""
    return nnx.eval_shape(lambda: create_model(name, rngs=OneKey(), **keywords))
