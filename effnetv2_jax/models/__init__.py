"""The networks as Flax NNX modules. They need only jax, flax and numpy."""

from effnetv2_jax.models.counting import count_multiply_adds, count_parameters
from effnetv2_jax.models.efficientnet import EfficientNet, FusedMBConv, MBConv
from effnetv2_jax.models.efficientnet_specs import EfficientNetSpec, GroupSpec
from effnetv2_jax.models.family import Feature, Network, Spec
from effnetv2_jax.models.folding import fold_batch_norm
from effnetv2_jax.models.registry import (
    ModelInfo,
    abstract_model,
    create_model,
    get_spec,
    list_models,
    model_info,
)
from effnetv2_jax.models.vit import VisionTransformer, VisionTransformerSpec

__all__ = [
    "EfficientNet",
    "EfficientNetSpec",
    "Feature",
    "FusedMBConv",
    "GroupSpec",
    "MBConv",
    "ModelInfo",
    "Network",
    "Spec",
    "VisionTransformer",
    "VisionTransformerSpec",
    "abstract_model",
    "count_multiply_adds",
    "count_parameters",
    "create_model",
    "fold_batch_norm",
    "get_spec",
    "list_models",
    "model_info",
]
