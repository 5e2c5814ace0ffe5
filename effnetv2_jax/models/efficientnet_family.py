"""The record of the EfficientNets: their names in other people's files, and what weights bring."""

import re
from collections.abc import Callable
from typing import Any

from effnetv2_jax.models.efficientnet import EfficientNet
from effnetv2_jax.models.efficientnet_specs import (
    EFFICIENTNET_SPECS,
    EfficientNetSpec,
    GroupSpec,
)
from effnetv2_jax.models.family import CLASSIFIER, Family, Names
from effnetv2_jax.models.layers import BatchNorm, Conv, DepthwiseConv
from effnetv2_jax.runtime.errors import UsageError

_EXPAND = ["expand.conv", "expand.norm"]
_DEPTHWISE = ["depthwise.conv", "depthwise.norm"]
_END = ["se.reduce", "se.expand", "project.conv", "project.norm"]

# The layers of each kind of block. MBConv1 is the paper's word for a block with expansion ratio 1.
_BLOCKS = {
    "mbconv": _EXPAND + _DEPTHWISE + _END,
    "mbconv1": _DEPTHWISE + _END,
    "fused": _EXPAND + _END,
    "fused1": _END,
}


def _layers(
    outside: str, prefix: str, **blocks: str
) -> Callable[[EfficientNetSpec], dict[str, str]]:
    """Makes ``Names.layers`` from tables of a library's names, which are separated by spaces.

    Args:
        outside: The names of the convolution and norm of the stem, of those of the head, and of the
            classifier. ``{last}`` stands for the number of groups plus one.
        prefix: The beginning of a block's names. ``{number}`` counts all blocks, ``{group}`` the
            groups and ``{repeat}`` the blocks in a group, from 0; ``{stage}`` is the group counted
            from 1, and ``{letter}`` the block in the group counted from a.
        **blocks: The names of the layers of each kind of block that the library has, in the order
            of ``_BLOCKS``; ``-`` for none.
    """

    def layers(spec: EfficientNetSpec) -> dict[str, str]:
        stem, stem_norm, *rest = outside.format(last=len(spec.groups) + 1).split()
        names = {"stem.conv": stem, "stem.norm": stem_norm}
        for number, block in enumerate(spec.blocks):
            before = prefix.format(
                number=number,
                group=block.group,
                repeat=block.repeat,
                stage=block.group + 1,
                letter=chr(ord("a") + block.repeat),
            )
            kind = block.op if block.expand_ratio != 1 else f"{block.op}1"
            for ours, theirs in zip(_BLOCKS[kind], blocks[kind].split(), strict=True):
                if theirs != "-" and (block.se_ratio or not ours.startswith("se.")):
                    names[f"blocks.{number}.{ours}"] = before + theirs
        return names | dict(zip(("head.conv", "head.norm", CLASSIFIER), rest, strict=True))

    return layers


_TENSORFLOW = {"padding": "same", "bn_epsilon": 1e-3}
_PYTORCH = {"padding": "symmetric", "bn_epsilon": 1e-5}


def _as_published(model: str, architecture: str | None) -> dict[str, Any]:
    """Implements ``Names.trained`` for libraries that have the networks of the papers."""
    spec = EFFICIENTNET_SPECS.get(model)
    return _TENSORFLOW | ({"preprocessing": spec.preprocessing} if spec else {})


def _timm_trained(model: str, architecture: str | None) -> dict[str, Any]:
    if architecture is None:
        raise UsageError(
            "its tensors have timm's names, which do not say whether the network pads as in "
            "TensorFlow or as in PyTorch"
        )
    return _TENSORFLOW if architecture.startswith("tf_") else _PYTORCH


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
    trained = trained | {"output_stride": 32, "pooling": "avg"}
    same = all(getattr(spec, field) == value for field, value in trained.items())
    return name if same and _IN_TIMM.fullmatch(name) else None


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


# keras.applications: .h5 files of Keras 2 and 3 have names, .weights.h5 files of Keras 3 numbers.

# The layer of V1 between its division by 255 and the stem. V2 has constants there.
_NORMALIZATION = tuple(rf"normalization(_\d+)?/{part}" for part in ("mean", "variance", "count"))


def _keras_layers(depthwise: str) -> Callable[[EfficientNetSpec], dict[str, str]]:
    end = "se_reduce se_expand project_conv project_bn"
    return _layers(
        "stem_conv stem_bn top_conv top_bn predictions",
        "block{stage}{letter}_",
        mbconv=f"expand_conv expand_bn {depthwise} bn {end}",
        mbconv1=f"{depthwise} bn {end}",
        fused=f"expand_conv expand_bn {end}",
        fused1=end,
    )


def _keras(
    version: str, anchor: str, depthwise: str, normalization: tuple[str, ...] | None = None
) -> Names:
    return Names(
        library=f"keras.applications ({version})",
        convention="keras",
        anchor=anchor,
        layers=_keras_layers(depthwise),
        territory=re.compile(r"(stem_|block\d|top_|predictions).*"),
        trained=_as_published,
        normalization=lambda spec: normalization,
    )


_KERAS_CLASSES = (
    (r"blocks\.\d+\.depthwise\.conv", "depthwise_conv2d"),
    (r".*\.norm", "batch_normalization"),
    (CLASSIFIER, "dense"),
    (r".*", "conv2d"),
)


def _keras_numbers(spec: EfficientNetSpec) -> dict[str, str]:
    """Numbers the layers of each Keras class in the order in which an image passes them."""
    counts: dict[str, int] = {}
    names = {}
    for layer in _keras_layers("dwconv")(spec):
        kind = next(x for pattern, x in _KERAS_CLASSES if re.fullmatch(pattern, layer))
        number = counts[kind] = counts.get(kind, -1) + 1
        names[layer] = f"layers/{kind}{f'_{number}' if number else ''}/vars"
    return names


def _normalization_by_number(spec: EfficientNetSpec) -> tuple[str, ...] | None:
    is_v1 = all(group.op == "mbconv" for group in spec.groups)
    return tuple(f"layers/normalization/vars/{i}" for i in range(3)) if is_v1 else None


_NORM = "tpu_batch_normalization"
_SE_TORCH = "_se_reduce _se_expand"
_SE_GRAPH = "se/conv2d se/conv2d_1"
_SE_OBJECTS = "_se/_se_reduce _se/_se_expand"

_NAMES = (
    Names(
        library="effnetv2_jax",
        convention="effnetv2_jax",
        anchor="stem.conv.kernel",
        layers=None,
        territory=re.compile(rf"(stem|blocks|head|{CLASSIFIER})\..*"),
        trained=_as_published,
    ),
    Names(
        library="timm",
        convention="pytorch",
        anchor="conv_stem.weight",
        layers=_layers(
            "conv_stem bn1 conv_head bn2 classifier",
            "blocks.{group}.{repeat}.",
            mbconv="conv_pw bn1 conv_dw bn2 se.conv_reduce se.conv_expand conv_pwl bn3",
            mbconv1="conv_dw bn1 se.conv_reduce se.conv_expand conv_pw bn2",
            fused="conv_exp bn1 se.conv_reduce se.conv_expand conv_pwl bn2",
            fused1="- - conv bn1",
        ),
        territory=re.compile(r"(conv_stem|bn1|blocks|conv_head|bn2|classifier)\..*"),
        trained=_timm_trained,
        our_model=lambda architecture: architecture.removeprefix("tf_").replace("_", "-"),
        their_model=_in_timm,
    ),
    Names(
        library="torchvision",
        convention="pytorch",
        anchor="features.0.0.weight",
        layers=_layers(
            "features.0.0 features.0.1 features.{last}.0 features.{last}.1 classifier.1",
            "features.{stage}.{repeat}.block.",
            mbconv="0.0 0.1 1.0 1.1 2.fc1 2.fc2 3.0 3.1",
            mbconv1="0.0 0.1 1.fc1 1.fc2 2.0 2.1",
            fused="0.0 0.1 - - 1.0 1.1",
            fused1="- - 0.0 0.1",
        ),
        territory=re.compile(r"(features|classifier)\..*"),
        trained=_torchvision_trained,
    ),
    Names(
        library="efficientnet_pytorch",
        convention="pytorch",
        anchor="_conv_stem.weight",
        layers=_layers(
            "_conv_stem _bn0 _conv_head _bn1 _fc",
            "_blocks.{number}.",
            mbconv=f"_expand_conv _bn0 _depthwise_conv _bn1 {_SE_TORCH} _project_conv _bn2",
            mbconv1=f"_depthwise_conv _bn1 {_SE_TORCH} _project_conv _bn2",
        ),
        territory=re.compile(r"(_conv_stem|_bn0|_blocks|_conv_head|_bn1|_fc)\..*"),
        trained=_as_published,
    ),
    # Only V1's first block has a depthwise convolution. The anchor of V2 is a tensor of V1 too.
    _keras("V1", "block1a_dwconv/kernel", "dwconv", _NORMALIZATION),
    _keras("V2", "block1a_project_conv/kernel", "dwconv2"),
    Names(
        library="keras.applications (Keras 3)",
        convention="keras_numbers",
        anchor="layers/conv2d/vars/0",
        layers=_keras_numbers,
        territory=re.compile(
            r"layers/(conv2d|depthwise_conv2d|batch_normalization|dense)(_\d+)?/.*"
        ),
        trained=_as_published,
        normalization=_normalization_by_number,
    ),
    # google/automl and tensorflow/tpu: graphs of TensorFlow 1 name their variables, object graphs
    # of TensorFlow 2 have paths of attributes.
    Names(
        library="TensorFlow 1 (official)",
        convention="tensorflow",
        anchor="stem/conv2d/kernel",
        layers=_layers(
            f"stem/conv2d stem/{_NORM} head/conv2d head/{_NORM} head/dense",
            "blocks_{number}/",
            mbconv=f"conv2d {_NORM} depthwise_conv2d {_NORM}_1 {_SE_GRAPH} conv2d_1 {_NORM}_2",
            mbconv1=f"depthwise_conv2d {_NORM} {_SE_GRAPH} conv2d {_NORM}_1",
            fused=f"conv2d {_NORM} {_SE_GRAPH} conv2d_1 {_NORM}_1",
            fused1=f"{_SE_GRAPH} conv2d {_NORM}",
        ),
        territory=re.compile(r"(stem|blocks_\d+|head)/.*"),
        trained=_as_published,
    ),
    Names(
        library="TensorFlow 2 (official)",
        convention="tensorflow",
        anchor="_stem/_conv_stem/kernel",
        layers=_layers(
            "_stem/_conv_stem _stem/_norm _head/_conv_head _head/_norm _fc",
            "_blocks/{number}/",
            mbconv=f"_expand_conv _norm0 _depthwise_conv _norm1 {_SE_OBJECTS} _project_conv _norm2",
            mbconv1=f"_depthwise_conv _norm1 {_SE_OBJECTS} _project_conv _norm2",
            fused=f"_expand_conv _norm0 {_SE_OBJECTS} _project_conv _norm1",
            fused1=f"{_SE_OBJECTS} _project_conv _norm1",
        ),
        territory=re.compile(r"(_stem|_blocks|_head|_fc)/.*"),
        trained=_as_published,
    ),
)


FAMILY = Family(
    name="efficientnet",
    title="EfficientNet",
    spec=EfficientNetSpec,
    module=EfficientNet,
    specs=EFFICIENTNET_SPECS,
    read_spec=lambda fields: EfficientNetSpec(
        **dict(fields) | {"groups": tuple(GroupSpec(**group) for group in fields["groups"])}
    ),
    as_trained={
        "padding": ((Conv, "padding"), (DepthwiseConv, "padding")),
        "bn_epsilon": ((BatchNorm, "epsilon"),),
    },
    also_adopted=("preprocessing", "train_size", "eval_size"),
    compared=("groups", "activation"),
    chosen=("output_stride", "pooling"),
    input_kernel="stem.conv.kernel",
    names=_NAMES,
)
