"""The record of the Vision Transformers: their names in other people's files, their positions.

A position embedding is [1, 1 + grid · grid, width]: the class token's row, then row after row of
patches. Nothing else in a ViT depends on the size of the images.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from effnetv2_jax.models.family import CLASSIFIER, Family, Names, Positions
from effnetv2_jax.models.vit import VIT_SPECS, VisionTransformer, VisionTransformerSpec


def grid_of(shape: tuple[int, ...]) -> int:
    """Returns the number of patches along a side of the image, from a position embedding's shape.

    Returns 0 if no square image has that shape.
    """
    if len(shape) != 3 or shape[1] < 2:
        return 0
    grid = math.isqrt(shape[1] - 1)
    return grid if grid**2 == shape[1] - 1 else 0


def interpolate(positions: np.ndarray, grid: int) -> np.ndarray:
    """Resizes a position embedding as timm does: bicubic, with antialiasing if it shrinks.

    The class token keeps its row.

    Args:
        positions: float32 [1, 1 + old · old, width].
        grid: The new number of patches along a side of the image.

    Returns:
        float32 [1, 1 + grid · grid, width].
    """
    old, width = grid_of(positions.shape), positions.shape[-1]
    start, patches = positions[:, :1], jnp.asarray(positions[:, 1:])
    square = patches.reshape(1, old, old, width)
    # Keys' cubic with a = −0.5, which is PyTorch's if it is told to antialias.
    square = jax.image.resize(square, (1, grid, grid, width), "cubic", antialias=True)
    return np.concatenate([start, np.asarray(square).reshape(1, -1, width)], axis=1)


# {timm's name: ours}. timm has a name for every image size, we have one for a row of the paper.
_IN_TIMM = {
    "vit_base_patch32_224": "vit-b-32",
    "vit_base_patch32_384": "vit-b-32",
    "vit_base_patch16_224": "vit-b-16",
    "vit_base_patch16_384": "vit-b-16",
    "vit_large_patch16_224": "vit-l-16",
    "vit_large_patch16_384": "vit-l-16",
    "deit_tiny_patch16_224": "deit-ti",
    "deit_small_patch16_224": "deit-s",
    "deit_base_patch16_224": "deit-b",
    "deit_base_patch16_384": "deit-b-384",
    "vit_tiny_patch16_224": "deit-ti",
    "vit_tiny_patch16_384": "deit-ti",
    "vit_small_patch16_224": "deit-s",
    "vit_small_patch16_384": "deit-s",
}


def _in_timm(spec: VisionTransformerSpec) -> str | None:
    for name, ours in _IN_TIMM.items():
        same_size = name.endswith(f"_{spec.eval_size}")
        if same_size and ours.removesuffix("-384") == spec.name.removesuffix("-384"):
            known = VIT_SPECS[ours]
            fields = ("num_heads", "norm_epsilon", "pooling")
            same = all(getattr(spec, field) == getattr(known, field) for field in fields)
            return name if same else None
    return None


_BLOCK = {
    "attention_norm": "norm1",
    "attention.qkv": "attn.qkv",
    "attention.project": "attn.proj",
    "mlp_norm": "norm2",
    "mlp.expand": "mlp.fc1",
    "mlp.project": "mlp.fc2",
}


def _timm_layers(spec: VisionTransformerSpec) -> dict[str, str]:
    outside = {
        "embed.patches": "patch_embed.proj",
        "embed.class_token": "cls_token",
        "embed.positions": "pos_embed",
        "norm": "norm",
        CLASSIFIER: "head",
    }
    return outside | {
        f"blocks.{number}.{ours}": f"blocks.{number}.{theirs}"
        for number in range(spec.depth)
        for ours, theirs in _BLOCK.items()
    }


# DeiT's own code has the same names.
_TIMM = Names(
    library="timm",
    convention="pytorch",
    anchor="pos_embed",
    layers=_timm_layers,
    # The second line belongs to ViTs that compute something else: such a tensor fits none of ours.
    territory=re.compile(
        r"(cls_token|pos_embed|patch_embed|blocks|norm|head"
        r"|norm_pre|fc_norm|pre_logits|reg_token|dist_token|head_dist|attn_pool)(\..*)?"
    ),
    trained=lambda model, architecture: {"norm_epsilon": 1e-6},
    our_model=_IN_TIMM.get,
    their_model=_in_timm,
)

_OURS = Names(
    library="effnetv2_jax",
    convention="effnetv2_jax",
    anchor="embed.positions",
    layers=None,
    territory=re.compile(rf"(embed|blocks|norm|{CLASSIFIER})\..*"),
    # Never asked: the description in our files says it.
    trained=lambda model, architecture: {},
)

FAMILY = Family(
    name="vit",
    title="ViT",
    spec=VisionTransformerSpec,
    module=VisionTransformer,
    specs=VIT_SPECS,
    read_spec=lambda fields: VisionTransformerSpec(**fields),
    as_trained={"norm_epsilon": ((nnx.LayerNorm, "epsilon"),)},
    # The position embedding's shape tells eval_size.
    also_adopted=("preprocessing",),
    compared=("num_heads",),
    chosen=("pooling",),
    input_kernel="embed.patches.kernel",
    names=(_OURS, _TIMM),
    # It has no batch norm.
    lacks=frozenset({"axis_name", "bn_group_size", "scan_blocks"}),
    positions=Positions(
        tensor="embed.positions",
        grid=grid_of,
        eval_size=lambda spec, grid: grid * spec.patch_size,
        interpolate=interpolate,
    ),
)
