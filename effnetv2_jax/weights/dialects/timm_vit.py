"""timm's names of ViTs and DeiTs, which are those of DeiT's own code too."""

import re
from typing import Any

from effnetv2_jax.models import VisionTransformerSpec
from effnetv2_jax.models.vit_specs import VIT_SPECS
from effnetv2_jax.weights.dialects.dialect import Dialect

# timm's name → ours. It has one for every image size, and we have one where the paper has a row.
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
}

# Preprocessing by timm's names; the first that fits. DINO and MAE had DeiT's.
_PREPROCESSING = (
    (r"deit_.*|vit_.*\.(dino|mae)\b.*", "deit"),
    (r"vit_.*", "vit"),
)


def _timm_vit(model: str, architecture: str | None) -> dict[str, Any]:
    """Unlike an EfficientNet's, its names say how it computes: only the preprocessing is open."""
    fits = (x for pattern, x in _PREPROCESSING if re.fullmatch(pattern, architecture or ""))
    published = VIT_SPECS[model].preprocessing if model in VIT_SPECS else None
    family = next(fits, published)
    return {"norm_epsilon": 1e-6} | ({"preprocessing": family} if family else {})


def _our_name(architecture: str) -> str | None:
    """Our name of a network of timm's, e.g. ``deit_small_patch16_224.fb_in1k``; None for others."""
    return _IN_TIMM.get(architecture.partition(".")[0])


def timm_vit_architecture(spec: VisionTransformerSpec) -> str | None:
    """The network of timm that computes what a spec says; None where there is none by name."""
    for name, ours in _IN_TIMM.items():
        same_size = name.endswith(f"_{spec.eval_size}")
        if same_size and _family(ours) == _family(spec.name):
            known = VIT_SPECS[ours]
            same = (spec.num_heads, spec.norm_epsilon) == (known.num_heads, known.norm_epsilon)
            return name if same else None
    return None


def _family(name: str) -> str:
    return name.removesuffix("-384")


_BLOCK = {
    "attention_norm": "norm1",
    "attention.qkv": "attn.qkv",
    "attention.project": "attn.proj",
    "mlp_norm": "norm2",
    "mlp.expand": "mlp.fc1",
    "mlp.project": "mlp.fc2",
}


def _names(spec: VisionTransformerSpec) -> dict[str, str]:
    outside = {
        "embed": "",
        "embed.patches": "patch_embed.proj",
        "norm": "norm",
        "classifier": "head",
    }
    return outside | {
        f"blocks.{number}.{ours}": f"blocks.{number}.{theirs}"
        for number in range(spec.depth)
        for ours, theirs in _BLOCK.items()
    }


TIMM_VIT = Dialect(
    name="timm",
    anchor="pos_embed",
    layer_names=_names,
    leaves={
        "embedding": {"class_token": "cls_token", "positions": "pos_embed"},
        "conv": {"kernel": "weight", "bias": "bias"},
        "layer_norm": {"scale": "weight", "bias": "bias"},
        "dense": {"kernel": "weight", "bias": "bias"},
    },
    axes={"conv": (2, 3, 1, 0), "dense": (1, 0)},
    separator=".",
    # Of the second line are ViTs that compute otherwise: such a tensor has no place in ours.
    territory=re.compile(
        r"(cls_token|pos_embed|patch_embed|blocks|norm|head"
        r"|norm_pre|fc_norm|pre_logits|reg_token|dist_token|head_dist|attn_pool)(\..*)?"
    ),
    trained=_timm_vit,
    network=VisionTransformerSpec,
    model_of=_our_name,
)
