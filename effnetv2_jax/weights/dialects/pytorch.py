"""Names of PyTorch's EfficientNets: timm, torchvision, and efficientnet_pytorch.

Needs no PyTorch: ``safetensors`` and ``torch_file`` read the files.
"""

import re
from typing import Any

from effnetv2_jax.models import EfficientNetSpec
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights.dialects.dialect import (
    TENSORFLOW,
    Axes,
    Dialect,
    Leaves,
    as_published,
    by_table,
)

_LEAVES: Leaves = {
    "conv": {"kernel": "weight", "bias": "bias"},
    "depthwise": {"kernel": "weight"},
    "norm": {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"},
    "dense": {"kernel": "weight", "bias": "bias"},
}
# [out, in, height, width], [channels, 1, height, width], [out, in].
_AXES: Axes = {"conv": (2, 3, 1, 0), "depthwise": (2, 3, 1, 0), "dense": (1, 0)}

_SYMMETRIC: dict[str, Any] = {"padding": "symmetric"}

# Preprocessing of timm's networks by the beginning of their names; the first that fits.
_TIMM_PREPROCESSING = (
    (r"tf_efficientnetv2_(s|m|l|xl)\b.*", "v2"),
    (r"tf_efficientnet_lite.*", "lite"),
    (r"tf_efficientnet_.*[._]ap([._].*)?", "advprop"),
    (r"tf_.*", "v1"),
    (r".*", "torch"),
)


def _timm(model: str, architecture: str | None) -> dict[str, Any]:
    if architecture is None:
        raise UsageError(
            "its tensors have timm's names, which do not say whether the network pads as in "
            "TensorFlow or as in PyTorch: give timm's name of it as architecture, e.g. "
            f"{timm_name(model, 'same')!r} or {timm_name(model, 'symmetric')!r}"
        )
    name = architecture.replace("-", "_")
    family = next(x for pattern, x in _TIMM_PREPROCESSING if re.fullmatch(pattern, name))
    # Where timm trained a network itself, the epsilon is PyTorch's too.
    trained = TENSORFLOW if name.startswith("tf_") else _SYMMETRIC | {"bn_epsilon": 1e-5}
    return trained | {"preprocessing": family}


def timm_name(model: str, padding: str) -> str:
    """What timm calls one of our models, e.g. ``tf_efficientnetv2_s``."""
    name = model.replace("-", "_")
    # Of V2's B variants timm has TensorFlow's alone.
    tensorflow = padding == "same" or name.startswith("efficientnetv2_b")
    return f"tf_{name}" if tensorflow else name


_IN_TIMM = re.compile(
    r"(tf_)?efficientnet_(b\d|l2|lite\d)|(tf_)?efficientnetv2_(s|m|l|xl)|tf_efficientnetv2_b\d"
    "|efficientnetv2_rw_t"
)


def timm_architecture(spec: EfficientNetSpec) -> str | None:
    """The network of timm that computes what a spec says; None where there is none by name."""
    name = timm_name(spec.name, spec.padding)
    trained = ("same", 1e-3) if name.startswith("tf_") else ("symmetric", 1e-5)
    same = (spec.padding, spec.bn_epsilon) == trained
    return name if same and _IN_TIMM.fullmatch(name) else None


_SE_TIMM = {"se.reduce": "se.conv_reduce", "se.expand": "se.conv_expand"}

TIMM = Dialect(
    name="timm",
    anchor="conv_stem.weight",
    layer_names=by_table(
        {
            "stem.conv": "conv_stem",
            "stem.norm": "bn1",
            "head.conv": "conv_head",
            "head.norm": "bn2",
            "classifier": "classifier",
        },
        "blocks.{group}.{repeat}.",
        {
            ("mbconv", True): {
                "expand.conv": "conv_pw",
                "expand.norm": "bn1",
                "depthwise.conv": "conv_dw",
                "depthwise.norm": "bn2",
                **_SE_TIMM,
                "project.conv": "conv_pwl",
                "project.norm": "bn3",
            },
            ("mbconv", False): {
                "depthwise.conv": "conv_dw",
                "depthwise.norm": "bn1",
                **_SE_TIMM,
                "project.conv": "conv_pw",
                "project.norm": "bn2",
            },
            ("fused", True): {
                "expand.conv": "conv_exp",
                "expand.norm": "bn1",
                **_SE_TIMM,
                "project.conv": "conv_pwl",
                "project.norm": "bn2",
            },
            ("fused", False): {"project.conv": "conv", "project.norm": "bn1"},
        },
    ),
    leaves=_LEAVES,
    axes=_AXES,
    separator=".",
    territory=re.compile(r"(conv_stem|bn1|blocks|conv_head|bn2|classifier)\..*"),
    trained=_timm,
)

# Epsilon and preprocessing of torchvision's networks, and B2's evaluation size. B5 to B7 come from
# TensorFlow, with its epsilon but not its padding.
_TORCHVISION: dict[str, dict[str, Any]] = {
    "efficientnet-b0": {"bn_epsilon": 1e-5, "preprocessing": "torch"},
    "efficientnet-b1": {"bn_epsilon": 1e-5, "preprocessing": "torch_16"},
    "efficientnet-b2": {"bn_epsilon": 1e-5, "preprocessing": "torch_0", "eval_size": 288},
    "efficientnet-b3": {"bn_epsilon": 1e-5, "preprocessing": "torch_20"},
    "efficientnet-b4": {"bn_epsilon": 1e-5, "preprocessing": "torch_4"},
    "efficientnet-b5": {"bn_epsilon": 1e-3, "preprocessing": "torch_0"},
    "efficientnet-b6": {"bn_epsilon": 1e-3, "preprocessing": "torch_0"},
    "efficientnet-b7": {"bn_epsilon": 1e-3, "preprocessing": "torch_0"},
    "efficientnetv2-s": {"bn_epsilon": 1e-3, "preprocessing": "torchvision_v2"},
    "efficientnetv2-m": {"bn_epsilon": 1e-3, "preprocessing": "torchvision_v2"},
    "efficientnetv2-l": {"bn_epsilon": 1e-3, "preprocessing": "torchvision_v2_l"},
}


def _torchvision(model: str, architecture: str | None) -> dict[str, Any]:
    del architecture
    if model not in _TORCHVISION:
        raise UsageError(
            f"its tensors have torchvision's names, but torchvision has no {model}: it has "
            f"{', '.join(_TORCHVISION)}"
        )
    return _SYMMETRIC | _TORCHVISION[model]


TORCHVISION = Dialect(
    name="torchvision",
    anchor="features.0.0.weight",
    layer_names=by_table(
        {
            "stem.conv": "features.0.0",
            "stem.norm": "features.0.1",
            "head.conv": "features.{last}.0",
            "head.norm": "features.{last}.1",
            "classifier": "classifier.1",
        },
        "features.{stage}.{repeat}.block.",
        {
            ("mbconv", True): {
                "expand.conv": "0.0",
                "expand.norm": "0.1",
                "depthwise.conv": "1.0",
                "depthwise.norm": "1.1",
                "se.reduce": "2.fc1",
                "se.expand": "2.fc2",
                "project.conv": "3.0",
                "project.norm": "3.1",
            },
            ("mbconv", False): {
                "depthwise.conv": "0.0",
                "depthwise.norm": "0.1",
                "se.reduce": "1.fc1",
                "se.expand": "1.fc2",
                "project.conv": "2.0",
                "project.norm": "2.1",
            },
            ("fused", True): {
                "expand.conv": "0.0",
                "expand.norm": "0.1",
                "project.conv": "1.0",
                "project.norm": "1.1",
            },
            ("fused", False): {"project.conv": "0.0", "project.norm": "0.1"},
        },
    ),
    leaves=_LEAVES,
    axes=_AXES,
    separator=".",
    territory=re.compile(r"(features|classifier)\..*"),
    trained=_torchvision,
)

_SE_PORT = {"se.reduce": "_se_reduce", "se.expand": "_se_expand"}

EFFICIENTNET_PYTORCH = Dialect(
    name="efficientnet_pytorch",
    anchor="_conv_stem.weight",
    layer_names=by_table(
        {
            "stem.conv": "_conv_stem",
            "stem.norm": "_bn0",
            "head.conv": "_conv_head",
            "head.norm": "_bn1",
            "classifier": "_fc",
        },
        "_blocks.{number}.",
        {
            ("mbconv", True): {
                "expand.conv": "_expand_conv",
                "expand.norm": "_bn0",
                "depthwise.conv": "_depthwise_conv",
                "depthwise.norm": "_bn1",
                **_SE_PORT,
                "project.conv": "_project_conv",
                "project.norm": "_bn2",
            },
            ("mbconv", False): {
                "depthwise.conv": "_depthwise_conv",
                "depthwise.norm": "_bn1",
                **_SE_PORT,
                "project.conv": "_project_conv",
                "project.norm": "_bn2",
            },
        },
    ),
    leaves=_LEAVES,
    axes=_AXES,
    separator=".",
    territory=re.compile(r"(_conv_stem|_bn0|_blocks|_conv_head|_bn1|_fc)\..*"),
    trained=as_published,
)
