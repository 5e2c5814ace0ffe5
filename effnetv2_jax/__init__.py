"""EfficientNetV2 (Tan & Le 2021, arXiv 2104.00298) in JAX and Flax NNX.

Importing this package imports neither TensorFlow, TFDS, clu nor orbax, and touches no device.
"""

from effnetv2_jax.models import create_model, fold_batch_norm, list_models, model_info
from effnetv2_jax.models.kernels.compiler import compiler_options
from effnetv2_jax.weights import load_model, load_weights, save_weights

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "compiler_options",
    "create_model",
    "fold_batch_norm",
    "list_models",
    "load_model",
    "load_weights",
    "model_info",
    "save_weights",
]
