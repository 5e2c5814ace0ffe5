"""The record of the EfficientNets: their names in other people's files, and what weights bring."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from effnetv2_jax.models.efficientnet import EfficientNet
from effnetv2_jax.models.efficientnet_specs import (
    EFFICIENTNET_SPECS,
    EfficientNetSpec,
    GroupSpec,
    Op,
)
from effnetv2_jax.models.family import CLASSIFIER, Family, Names
from effnetv2_jax.models.layers import BatchNorm, Conv, DepthwiseConv
from effnetv2_jax.runtime.errors import UsageError

# {(block's op, whether it expands): {our layer in the block: the library's name}}
Blocks = Mapping[tuple[Op, bool], Mapping[str, str]]


def _layers(
    outside: Mapping[str, str], prefix: str, blocks: Blocks
) -> Callable[[EfficientNetSpec], dict[str, str]]:
    """Makes ``Names.layers`` from tables in which fields in braces are filled in.

    Args:
        outside: The names of stem, head and classifier, {ours: theirs}. ``{last}`` is the number of
            groups plus one.
        prefix: The beginning of a block's names. ``{number}`` counts all blocks, ``{group}`` the
            groups and ``{repeat}`` the blocks in a group, from 0; ``{stage}`` is the group counted
            from 1, and ``{letter}`` the block in the group counted from a.
        blocks: The names of a block's layers.
    """

    def layers(spec: EfficientNetSpec) -> dict[str, str]:
        names = {ours: theirs.format(last=len(spec.groups) + 1) for ours, theirs in outside.items()}
        for number, block in enumerate(spec.blocks):
            before = prefix.format(
                number=number,
                group=block.group,
                repeat=block.repeat,
                stage=block.group + 1,
                letter=chr(ord("a") + block.repeat),
            )
            for ours, theirs in blocks[block.op, block.expand_ratio != 1].items():
                if block.squeezed_filters or not ours.startswith("se."):
                    names[f"blocks.{number}.{ours}"] = before + theirs
        return names

    return layers


_TENSORFLOW = {"padding": "same", "bn_epsilon": 1e-3}
_PYTORCH = {"padding": "symmetric", "bn_epsilon": 1e-5}


def _as_published(model: str, architecture: str | None) -> dict[str, Any]:
    """Implements ``Names.trained`` for libraries that have the networks of the papers."""
    spec = EFFICIENTNET_SPECS.get(model)
    return _TENSORFLOW | ({"preprocessing": spec.preprocessing} if spec else {})


# timm.

# The preprocessing of timm's networks by a pattern of their names; the first match counts.
_TIMM_PREPROCESSING = (
    (r"tf_efficientnetv2_(s|m|l|xl)\b.*", "v2"),
    (r"tf_efficientnet_lite.*", "lite"),
    (r"tf_efficientnet_.*[._]ap([._].*)?", "advprop"),
    (r"tf_.*", "v1"),
    (r".*", "torch"),
)


def _timm_trained(model: str, architecture: str | None) -> dict[str, Any]:
    if architecture is None:
        raise UsageError(
            "its tensors have timm's names, which do not say whether the network pads as in "
            "TensorFlow or as in PyTorch: give timm's name of it as architecture, e.g. "
            f"{_timm_name(model, 'same')!r} or {_timm_name(model, 'symmetric')!r}"
        )
    name = architecture.replace("-", "_")
    family = next(x for pattern, x in _TIMM_PREPROCESSING if re.fullmatch(pattern, name))
    return (_TENSORFLOW if name.startswith("tf_") else _PYTORCH) | {"preprocessing": family}


def _timm_name(model: str, padding: str) -> str:
    """Returns timm's name of one of our models, for example ``tf_efficientnetv2_s``."""
    name = model.replace("-", "_")
    # timm's networks with V2's B names are all from TensorFlow.
    tensorflow = padding == "same" or name.startswith("efficientnetv2_b")
    return f"tf_{name}" if tensorflow else name


_IN_TIMM = re.compile(
    r"(tf_)?efficientnet_(b\d|l2|lite\d)|(tf_)?efficientnetv2_(s|m|l|xl)|tf_efficientnetv2_b\d"
    "|efficientnetv2_rw_t"
)


def _in_timm(spec: EfficientNetSpec) -> str | None:
    name = _timm_name(spec.name, spec.padding)
    trained = _TENSORFLOW if name.startswith("tf_") else _PYTORCH
    same = all(getattr(spec, field) == value for field, value in trained.items())
    return name if same and _IN_TIMM.fullmatch(name) else None


_SE_TIMM = {"se.reduce": "se.conv_reduce", "se.expand": "se.conv_expand"}

_TIMM = Names(
    library="timm",
    convention="pytorch",
    anchor="conv_stem.weight",
    layers=_layers(
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
    territory=re.compile(r"(conv_stem|bn1|blocks|conv_head|bn2|classifier)\..*"),
    trained=_timm_trained,
    their_model=_in_timm,
)


# torchvision.

# The epsilon and preprocessing of torchvision's networks, and B2's evaluation size. B5 to B7 come
# from TensorFlow and have its epsilon, but not its padding.
_IN_TORCHVISION: dict[str, dict[str, Any]] = {
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


def _torchvision_trained(model: str, architecture: str | None) -> dict[str, Any]:
    if model not in _IN_TORCHVISION:
        raise UsageError(
            f"its tensors have torchvision's names, but torchvision has no {model}: it has "
            f"{', '.join(_IN_TORCHVISION)}"
        )
    return {"padding": "symmetric"} | _IN_TORCHVISION[model]


_TORCHVISION = Names(
    library="torchvision",
    convention="pytorch",
    anchor="features.0.0.weight",
    layers=_layers(
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
    territory=re.compile(r"(features|classifier)\..*"),
    trained=_torchvision_trained,
)


# efficientnet_pytorch.

_SE_PORT = {"se.reduce": "_se_reduce", "se.expand": "_se_expand"}

_EFFICIENTNET_PYTORCH = Names(
    library="efficientnet_pytorch",
    convention="pytorch",
    anchor="_conv_stem.weight",
    layers=_layers(
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
    territory=re.compile(r"(_conv_stem|_bn0|_blocks|_conv_head|_bn1|_fc)\..*"),
    trained=_as_published,
)


# keras.applications: .h5 files of Keras 2 and 3 have names, .weights.h5 files of Keras 3 numbers.


def _keras_layers(depthwise: str) -> Callable[[EfficientNetSpec], dict[str, str]]:
    expand = {"expand.conv": "expand_conv", "expand.norm": "expand_bn"}
    project = {"project.conv": "project_conv", "project.norm": "project_bn"}
    squeeze = {"se.reduce": "se_reduce", "se.expand": "se_expand"}
    middle = {"depthwise.conv": depthwise, "depthwise.norm": "bn"} | squeeze
    outside = {
        "stem.conv": "stem_conv",
        "stem.norm": "stem_bn",
        "head.conv": "top_conv",
        "head.norm": "top_bn",
        "classifier": "predictions",
    }
    blocks: Blocks = {
        ("mbconv", True): expand | middle | project,
        ("mbconv", False): middle | project,
        ("fused", True): expand | squeeze | project,
        ("fused", False): squeeze | project,
    }
    return _layers(outside, "block{stage}{letter}_", blocks)


def _keras(version: str, anchor: str, depthwise: str) -> Names:
    return Names(
        library=f"keras.applications ({version})",
        convention="keras",
        anchor=anchor,
        layers=_keras_layers(depthwise),
        territory=re.compile(r"(stem_|block\d|top_|predictions).*"),
        trained=_as_published,
    )


# Only V1's first block has a depthwise convolution. The anchor of V2 is a tensor of V1 too.
_KERAS_V1 = _keras("V1", "block1a_dwconv/kernel", "dwconv")
_KERAS_V2 = _keras("V2", "block1a_project_conv/kernel", "dwconv2")

_KERAS_CLASSES = (
    (r"blocks\.\d+\.depthwise\.conv", "depthwise_conv2d"),
    (r".*\.norm", "batch_normalization"),
    (CLASSIFIER, "dense"),
    (r".*", "conv2d"),
)


def _keras_numbers(spec: EfficientNetSpec) -> dict[str, str]:
    """Numbers the layers of each Keras class in the order in which an image passes them."""
    # A stable sort: only the head and the classifier move, behind the blocks.
    layers = sorted(
        _keras_layers("dwconv")(spec), key=lambda name: name.startswith(("head", CLASSIFIER))
    )
    counts: dict[str, int] = {}
    names = {}
    for layer in layers:
        kind = next(x for pattern, x in _KERAS_CLASSES if re.fullmatch(pattern, layer))
        number = counts[kind] = counts.get(kind, -1) + 1
        names[layer] = f"layers/{kind}{f'_{number}' if number else ''}/vars"
    return names


_KERAS_NUMBERS = Names(
    library="keras.applications (Keras 3)",
    convention="keras_numbers",
    anchor="layers/conv2d/vars/0",
    layers=_keras_numbers,
    territory=re.compile(r"layers/(conv2d|depthwise_conv2d|batch_normalization|dense)(_\d+)?/.*"),
    trained=_as_published,
)


# google/automl and tensorflow/tpu: graphs of TensorFlow 1 name their variables, object graphs of
# TensorFlow 2 have paths of attributes.

_NORM = "tpu_batch_normalization"
_SE = {"se.reduce": "se/conv2d", "se.expand": "se/conv2d_1"}

_GRAPH = Names(
    library="TensorFlow 1 (official)",
    convention="tensorflow",
    anchor="stem/conv2d/kernel",
    layers=_layers(
        {
            "stem.conv": "stem/conv2d",
            "stem.norm": f"stem/{_NORM}",
            "head.conv": "head/conv2d",
            "head.norm": f"head/{_NORM}",
            "classifier": "head/dense",
        },
        "blocks_{number}/",
        {
            ("mbconv", True): {
                "expand.conv": "conv2d",
                "expand.norm": _NORM,
                "depthwise.conv": "depthwise_conv2d",
                "depthwise.norm": f"{_NORM}_1",
                **_SE,
                "project.conv": "conv2d_1",
                "project.norm": f"{_NORM}_2",
            },
            ("mbconv", False): {
                "depthwise.conv": "depthwise_conv2d",
                "depthwise.norm": _NORM,
                **_SE,
                "project.conv": "conv2d",
                "project.norm": f"{_NORM}_1",
            },
            ("fused", True): {
                "expand.conv": "conv2d",
                "expand.norm": _NORM,
                **_SE,
                "project.conv": "conv2d_1",
                "project.norm": f"{_NORM}_1",
            },
            ("fused", False): {**_SE, "project.conv": "conv2d", "project.norm": _NORM},
        },
    ),
    territory=re.compile(r"(stem|blocks_\d+|head)/.*"),
    trained=_as_published,
)

_SE_OBJECTS = {"se.reduce": "_se/_se_reduce", "se.expand": "_se/_se_expand"}

_OBJECTS = Names(
    library="TensorFlow 2 (official)",
    convention="tensorflow",
    anchor="_stem/_conv_stem/kernel",
    layers=_layers(
        {
            "stem.conv": "_stem/_conv_stem",
            "stem.norm": "_stem/_norm",
            "head.conv": "_head/_conv_head",
            "head.norm": "_head/_norm",
            "classifier": "_fc",
        },
        "_blocks/{number}/",
        {
            ("mbconv", True): {
                "expand.conv": "_expand_conv",
                "expand.norm": "_norm0",
                "depthwise.conv": "_depthwise_conv",
                "depthwise.norm": "_norm1",
                **_SE_OBJECTS,
                "project.conv": "_project_conv",
                "project.norm": "_norm2",
            },
            ("mbconv", False): {
                "depthwise.conv": "_depthwise_conv",
                "depthwise.norm": "_norm1",
                **_SE_OBJECTS,
                "project.conv": "_project_conv",
                "project.norm": "_norm2",
            },
            ("fused", True): {
                "expand.conv": "_expand_conv",
                "expand.norm": "_norm0",
                **_SE_OBJECTS,
                "project.conv": "_project_conv",
                "project.norm": "_norm1",
            },
            ("fused", False): {
                **_SE_OBJECTS,
                "project.conv": "_project_conv",
                "project.norm": "_norm1",
            },
        },
    ),
    territory=re.compile(r"(_stem|_blocks|_head|_fc)/.*"),
    trained=_as_published,
)

_OURS = Names(
    library="effnetv2_jax",
    convention="effnetv2_jax",
    anchor="stem.conv.kernel",
    layers=None,
    territory=re.compile(rf"(stem|blocks|head|{CLASSIFIER})\..*"),
    trained=_as_published,
)


def _read_spec(fields: Mapping[str, Any]) -> EfficientNetSpec:
    groups = tuple(GroupSpec(**group) for group in fields["groups"])
    return EfficientNetSpec(**{**fields, "groups": groups})


FAMILY = Family(
    name="efficientnet",
    title="EfficientNet",
    spec=EfficientNetSpec,
    module=EfficientNet,
    specs=EFFICIENTNET_SPECS,
    read_spec=_read_spec,
    as_trained={
        "padding": ((Conv, "padding"), (DepthwiseConv, "padding")),
        "bn_epsilon": ((BatchNorm, "epsilon"),),
    },
    also_adopted=("preprocessing", "train_size", "eval_size"),
    compared=("groups", "activation"),
    names=(
        _OURS,
        _TIMM,
        _TORCHVISION,
        _EFFICIENTNET_PYTORCH,
        _KERAS_V1,
        _KERAS_V2,
        _KERAS_NUMBERS,
        _GRAPH,
        _OBJECTS,
    ),
)
