"""EfficientNetV2 (Tan & Le 2021, arXiv 2104.00298) in JAX and Flax NNX.

Importing this package imports nothing else and touches no device. A function brings in JAX and Flax
when it is first asked for. TensorFlow, TFDS, clu and orbax are only imported by what needs them.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from effnetv2_jax.models import fold_batch_norm, list_models, model_info
    from effnetv2_jax.models.kernels.compiler import compiler_options
    from effnetv2_jax.transforms import make_transform
    from effnetv2_jax.weights import (
        create_model,
        list_pretrained,
        load_model,
        load_weights,
        save_pretrained,
        save_weights,
    )

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "compiler_options",
    "create_model",
    "fold_batch_norm",
    "list_models",
    "list_pretrained",
    "load_model",
    "load_weights",
    "make_transform",
    "model_info",
    "save_pretrained",
    "save_weights",
]

_MODULES = {
    "compiler_options": "effnetv2_jax.models.kernels.compiler",
    "create_model": "effnetv2_jax.weights",
    "fold_batch_norm": "effnetv2_jax.models",
    "list_models": "effnetv2_jax.models",
    "list_pretrained": "effnetv2_jax.weights",
    "load_model": "effnetv2_jax.weights",
    "load_weights": "effnetv2_jax.weights",
    "make_transform": "effnetv2_jax.transforms",
    "model_info": "effnetv2_jax.models",
    "save_pretrained": "effnetv2_jax.weights",
    "save_weights": "effnetv2_jax.weights",
}


def __getattr__(name: str):
    """Imports a public function when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
