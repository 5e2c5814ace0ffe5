"""Other people's weights, in and out.

TensorFlow, Orbax and h5py are imported only to open their files. PyTorch is never needed.
"""

from effnetv2_jax.weights.load import Loaded, load_model, load_weights
from effnetv2_jax.weights.pretrained import create_model, save_pretrained
from effnetv2_jax.weights.published import list_pretrained
from effnetv2_jax.weights.read import Weights, read_weights
from effnetv2_jax.weights.save import save_weights

__all__ = [
    "Loaded",
    "Weights",
    "create_model",
    "list_pretrained",
    "load_model",
    "load_weights",
    "read_weights",
    "save_pretrained",
    "save_weights",
]
