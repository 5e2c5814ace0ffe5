"""Other people's weights, in and out.

TensorFlow, Orbax and h5py are imported only to open their files. PyTorch is never needed.
"""

from effnetv2_jax.weights.load import Loaded, load_model, load_weights
from effnetv2_jax.weights.read import Weights, read_weights
from effnetv2_jax.weights.save import save_weights

__all__ = ["Loaded", "Weights", "load_model", "load_weights", "read_weights", "save_weights"]
