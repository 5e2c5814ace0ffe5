"""Weights that need no file: every tensor is drawn from its name and its shape.

``make_logits.py`` fills other people's networks with them, and a test fills ours with the same
ones under the same names. NumPy only, so that neither needs what the other is made of.

The rule keeps deep networks healthy: whatever the depth, logits depend on the image and on every
tensor, and float32 computes them to 1e-6.
"""

import hashlib
import math
import re
from collections.abc import Mapping

import numpy as np

# Place of a block in its stage: blocks.3.2.conv_pw (timm), features.3.2.block (torchvision),
# block4c_project_conv (Keras).
_TORCH_BLOCK = re.compile(r"\.\d+\.(\d+)\.")
_KERAS_BLOCK = re.compile(r"\bblock\d+([a-z])_")


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws the tensor of that name in a checkpoint of timm, torchvision or Keras.

    Args:
        name: The name in a state dict, or a Keras layer's name, a slash and the weight's.
        shape: The shape in the library: torch's kernels end in their sizes, Keras's begin with
            them.

    Returns:
        The float32 tensor, or an int64 zero if the shape is empty (``num_batches_tracked``).
    """
    if not shape:
        return np.zeros((), np.int64)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    ending = re.split(r"[./]", name)[-1]
    if ending in ("running_var", "moving_variance"):
        return rng.random(shape, np.float32) + np.float32(0.5)
    normal = rng.standard_normal(shape, np.float32)
    if len(shape) > 1 and ending in ("weight", "kernel", "depthwise_kernel"):
        return normal * np.float32(_kernel_std(name, shape, torch=ending == "weight"))
    if ending in ("weight", "gamma"):
        return 1 + np.float32(0.1) * normal
    if ending in ("bias", "beta", "running_mean", "moving_mean"):
        return np.float32(0.1) * normal
    if ending in ("cls_token", "pos_embed"):
        # As large as what the patches of a picture of noise become.
        return normal
    raise ValueError(f"no rule for {name} of shape {shape}")


def _kernel_std(name: str, shape: tuple[int, ...], torch: bool) -> float:
    if len(shape) == 2:
        return math.sqrt(0.4 / shape[1 if torch else 0])
    # As torch has it. Keras keeps a depthwise kernel's channels where others have their inputs.
    if not torch:
        height, width, inputs, outputs = shape
        shape = (inputs, 1, height, width) if outputs == 1 else (outputs, inputs, height, width)
    outputs, inputs = shape[:2]
    if inputs == 1:
        # The activation after it and SE take away more than after other kernels.
        gain = 3.0
    elif outputs <= inputs and (place := _place_in_stage(name)):
        # The end of a branch beside a skip, or SE. Were it as large as the others, activations
        # would grow by a factor with every block, and SE turn rounding errors into noise; were the
        # first block's as small, which has no skip, the image would be lost on the way.
        gain = 0.1 / place
    else:
        gain = 2.0
    return math.sqrt(gain / math.prod(shape[1:]))


def _place_in_stage(name: str) -> int:
    """Returns a block's index in its stage; 0 for tensors outside of blocks."""
    if match := _TORCH_BLOCK.search(name):
        return int(match[1])
    if match := _KERAS_BLOCK.search(name):
        return ord(match[1]) - ord("a")
    return 0


def image(height: int = 96, width: int = 75) -> np.ndarray:
    """Returns a float32 image [1, height, width, 3].

    By default one side is odd, so that every kind of padding shows. A ViT takes only images of its
    own size.
    """
    return np.random.default_rng(0).normal(size=(1, height, width, 3)).astype(np.float32)


def digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Returns the SHA-256 of sorted lines such as ``classifier.weight 1000x1280``.

    Tensors without a shape, which are torch's counters of batches, are left out.
    """
    lines = sorted(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items() if shape)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
