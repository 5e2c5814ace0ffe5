"""The frozen tables of every EfficientNet: V2, V1, Lite, and the hybrids of Table 3.

The paper calls a row of Table 1 or Table 4 a stage. Here it is a group, because a stage is also a
part of progressive learning.
"""

import dataclasses
import math
from typing import Literal

Op = Literal["mbconv", "fused"]


@dataclasses.dataclass(frozen=True)
class GroupSpec:
    """A run of equal blocks, one row of Table 1 or Table 4.

    Attributes:
        op: The kind of block, ``mbconv`` or ``fused``.
        repeats: The number of blocks.
        kernel_size: The side of the square kernel of the depthwise (MBConv) or first (Fused-MBConv)
            convolution in px.
        stride: The stride of the first block; the others have stride 1.
        expand_ratio: The number of channels inside a block over that of its input.
        filters: The number of output channels.
        se_ratio: The number of channels of SE's bottleneck over that of the block's *input*; 0
            leaves out SE.
    """

    op: Op
    repeats: int
    kernel_size: int
    stride: int
    expand_ratio: int
    filters: int
    se_ratio: float


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """One block of a network; see ``GroupSpec`` for the attributes that are not listed.

    Attributes:
        group: The index of the block's group.
        repeat: The index of the block in its group.
        in_filters: The number of input channels.
        stride: The stride of this block.
        dilation: The dilation of its k × k convolution, 1 except for a smaller output stride.
    """

    group: int
    repeat: int
    op: Op
    in_filters: int
    filters: int
    kernel_size: int
    stride: int
    expand_ratio: int
    se_ratio: float
    dilation: int = 1


OUTPUT_STRIDES = (8, 16, 32)
"""The values of ``EfficientNetSpec.output_stride``."""


@dataclasses.dataclass(frozen=True)
class EfficientNetSpec:
    """Everything that tells one network of the family from another.

    Attributes:
        name: The name, as for ``create_model``.
        groups: The groups of the body, in order.
        stem_filters: The number of output channels of the stride-2 3×3 convolution at the start.
        head_filters: The number of output channels of the 1×1 convolution before pooling.
        train_size: The side of training images in px; in progressive learning, the last stage's.
        eval_size: The side of evaluation images in px.
        dropout_rate: The dropout rate before the classifier, from the official configs.
        preprocessing: The input family's name in ``effnetv2_jax.preprocessing``.
        head_init_scale: The factor on the official initial kernel of the classifier,
            U(±1/√classes). With few classes that kernel gives large logits at first, and a factor
            of 0.1 learns sooner.
        activation: The activation, a name in ``activations.ACTIVATIONS``.
        survival_prob: The probability that the last block survives stochastic depth; it falls
            linearly from 1.
        bn_momentum: The momentum of batch norm, 0.99 as in the paper.
        bn_epsilon: The epsilon of batch norm, 1e-3. Networks that were trained in PyTorch mostly
            have 1e-5.
        padding: The padding of convolutions, one of ``convolutions.PADDINGS``: ``same``, or
            ``symmetric`` for networks that were trained in PyTorch.
        in_channels: The number of channels of images.
        output_stride: The side of an image over that of the last feature map, one of
            ``OUTPUT_STRIDES``. Below 32, the last groups dilate their kernels instead of striding,
            as in timm, and any weights of the network can still be loaded.
        pooling: The pooling before the classifier, a name in ``layers.POOLINGS``.
    """

    name: str
    groups: tuple[GroupSpec, ...]
    stem_filters: int
    head_filters: int
    train_size: int
    eval_size: int
    dropout_rate: float
    preprocessing: str
    head_init_scale: float = 1.0
    activation: str = "silu"
    survival_prob: float = 0.8
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    padding: str = "same"
    in_channels: int = 3
    output_stride: int = 32
    pooling: str = "avg"

    @property
    def blocks(self) -> tuple[BlockSpec, ...]:
        """All blocks of the body, in order."""
        blocks: list[BlockSpec] = []
        reduction, dilation = 2, 1  # of the stem
        for number, group in enumerate(self.groups):
            strides = reduction * group.stride <= self.output_stride
            first_dilation = dilation
            if strides:
                reduction *= group.stride
            else:
                dilation *= group.stride
            for repeat in range(group.repeats):
                blocks.append(
                    BlockSpec(
                        group=number,
                        repeat=repeat,
                        op=group.op,
                        in_filters=blocks[-1].filters if blocks else self.stem_filters,
                        filters=group.filters,
                        kernel_size=group.kernel_size,
                        stride=group.stride if repeat == 0 and strides else 1,
                        expand_ratio=group.expand_ratio,
                        se_ratio=group.se_ratio,
                        # The block that would have halved the image still reads its neighbours.
                        dilation=first_dilation if repeat == 0 else dilation,
                    )
                )
        return tuple(blocks)


def round_filters(filters: int, width: float, keep: float = 0.0) -> int:
    """Scales filters by ``width`` and rounds to the nearest multiple of 8, at least 8.

    Args:
        filters: The number of filters at width 1.
        width: The factor.
        keep: The fraction of the scaled number below which the result must not fall; otherwise it
            is rounded up. It is 0.9 in V1 and Lite, which only changes the first group of B3: the
            published weights have 24 filters there. google/automl builds V1 with V2's rounding and
            gives it 16.
    """
    rounded = max(8, int(filters * width + 4) // 8 * 8)
    return rounded if rounded >= keep * filters * width else rounded + 8


_V1_KEEPS = 0.9  # of round_filters, in V1 and Lite


def _fused(repeats: int, stride: int, expand_ratio: int, filters: int) -> GroupSpec:
    return GroupSpec("fused", repeats, 3, stride, expand_ratio, filters, 0.0)


def _mbconv(
    repeats: int, stride: int, expand_ratio: int, filters: int, kernel_size: int = 3
) -> GroupSpec:
    return GroupSpec("mbconv", repeats, kernel_size, stride, expand_ratio, filters, 0.25)


# Table 4 and the official configs; stem filters are the first group's input filters.
_V2_BASE = (
    _fused(1, 1, 1, 16), _fused(2, 2, 4, 32), _fused(2, 2, 4, 48),
    _mbconv(3, 2, 4, 96), _mbconv(5, 1, 6, 112), _mbconv(8, 2, 6, 192),
)  # fmt: skip
_V2_S = (
    _fused(2, 1, 1, 24), _fused(4, 2, 4, 48), _fused(4, 2, 4, 64),
    _mbconv(6, 2, 4, 128), _mbconv(9, 1, 6, 160), _mbconv(15, 2, 6, 256),
)  # fmt: skip
_V2_M = (
    _fused(3, 1, 1, 24), _fused(5, 2, 4, 48), _fused(5, 2, 4, 80),
    _mbconv(7, 2, 4, 160), _mbconv(14, 1, 6, 176), _mbconv(18, 2, 6, 304), _mbconv(5, 1, 6, 512),
)  # fmt: skip
_V2_L = (
    _fused(4, 1, 1, 32), _fused(7, 2, 4, 64), _fused(7, 2, 4, 96),
    _mbconv(10, 2, 4, 192), _mbconv(19, 1, 6, 224), _mbconv(25, 2, 6, 384), _mbconv(7, 1, 6, 640),
)  # fmt: skip
_V2_XL = (
    _fused(4, 1, 1, 32), _fused(8, 2, 4, 64), _fused(8, 2, 4, 96),
    _mbconv(16, 2, 4, 192), _mbconv(24, 1, 6, 256), _mbconv(32, 2, 6, 512), _mbconv(8, 1, 6, 640),
)  # fmt: skip
# timm's own: V2-S at 0.8 of the width and 0.9 of the depth, rounded as V1 is, trained in PyTorch.
_RW_T = (
    _fused(2, 1, 1, 24), _fused(4, 2, 4, 40), _fused(4, 2, 4, 48),
    _mbconv(6, 2, 4, 104), _mbconv(9, 1, 6, 128), _mbconv(14, 2, 6, 208),
)  # fmt: skip
# V2's parts at a size that compiles in seconds, for trying things out. It was never published.
_TINY = (_fused(1, 1, 1, 8), _fused(1, 2, 4, 16), _mbconv(2, 2, 4, 24))

# Table 1.
_V1_BASE = (
    _mbconv(1, 1, 1, 16), _mbconv(2, 2, 6, 24), _mbconv(2, 2, 6, 40, 5), _mbconv(3, 2, 6, 80),
    _mbconv(3, 1, 6, 112, 5), _mbconv(4, 2, 6, 192, 5), _mbconv(1, 1, 6, 320),
)  # fmt: skip


def _scaled(
    name: str,
    base: tuple[GroupSpec, ...],
    width: float,
    depth: float,
    train_size: int,
    eval_size: int,
    dropout_rate: float,
    keep: float = _V1_KEEPS,
) -> EfficientNetSpec:
    """Returns a network whose base is wider by one factor and deeper by another."""
    groups = tuple(
        dataclasses.replace(
            group,
            filters=round_filters(group.filters, width, keep),
            repeats=math.ceil(group.repeats * depth),
        )
        for group in base
    )
    stem_filters, head_filters = (round_filters(x, width, keep) for x in (32, 1280))
    return EfficientNetSpec(
        name, groups, stem_filters, head_filters, train_size, eval_size, dropout_rate, "v1"
    )


def _lite(
    index: int, width: float, depth: float, eval_size: int, dropout_rate: float
) -> EfficientNetSpec:
    """Returns an EfficientNet-Lite: V1 without SE, with ReLU6, stem and head unscaled.

    As in tensorflow/tpu's ``efficientnet/lite``, the first and the last group also keep their
    number of blocks.
    """
    name = f"efficientnet-lite{index}"
    spec = _scaled(name, _V1_BASE, width, depth, eval_size, eval_size, dropout_rate)
    groups = [dataclasses.replace(group, se_ratio=0.0) for group in spec.groups]
    for i in (0, -1):
        groups[i] = dataclasses.replace(groups[i], repeats=_V1_BASE[i].repeats)
    return dataclasses.replace(
        spec,
        groups=tuple(groups),
        stem_filters=32,
        head_filters=1280,
        preprocessing="lite",
        activation="relu6",
    )


def _fuse_first(spec: EfficientNetSpec, count: int) -> EfficientNetSpec:
    """Replaces the first ``count`` groups by Fused-MBConv, as in a row of Table 3.

    A fused group keeps its kernel size and loses its SE. This definition comes nearest to Table 3's
    parameters: 20.9, 43.5 and 132.1 million against 20.0, 43.4 and 132.0.
    """
    groups = tuple(
        dataclasses.replace(group, op="fused", se_ratio=0.0) if i < count else group
        for i, group in enumerate(spec.groups)
    )
    return dataclasses.replace(spec, name=f"{spec.name}-fused-1-{count}", groups=groups)


# V1's training images have 0.8 of the evaluation size, rounded down.
_B4 = _scaled("efficientnet-b4", _V1_BASE, 1.4, 1.8, 304, 380, 0.4)

EFFICIENTNET_SPECS: dict[str, EfficientNetSpec] = {
    spec.name: spec
    for spec in (
        _scaled("efficientnetv2-b0", _V2_BASE, 1.0, 1.0, 192, 224, 0.2, keep=0.0),
        _scaled("efficientnetv2-b1", _V2_BASE, 1.0, 1.1, 192, 240, 0.2, keep=0.0),
        _scaled("efficientnetv2-b2", _V2_BASE, 1.1, 1.2, 208, 260, 0.3, keep=0.0),
        _scaled("efficientnetv2-b3", _V2_BASE, 1.2, 1.4, 240, 300, 0.3, keep=0.0),
        EfficientNetSpec("efficientnetv2-s", _V2_S, 24, 1280, 300, 384, 0.2, "v2"),
        EfficientNetSpec("efficientnetv2-m", _V2_M, 24, 1280, 384, 480, 0.3, "v2"),
        EfficientNetSpec("efficientnetv2-l", _V2_L, 32, 1280, 384, 480, 0.4, "v2"),
        EfficientNetSpec("efficientnetv2-xl", _V2_XL, 32, 1280, 384, 512, 0.4, "v2"),
        _scaled("efficientnet-b0", _V1_BASE, 1.0, 1.0, 179, 224, 0.2),
        _scaled("efficientnet-b1", _V1_BASE, 1.0, 1.1, 192, 240, 0.2),
        _scaled("efficientnet-b2", _V1_BASE, 1.1, 1.2, 208, 260, 0.3),
        _scaled("efficientnet-b3", _V1_BASE, 1.2, 1.4, 240, 300, 0.3),
        _B4,
        _scaled("efficientnet-b5", _V1_BASE, 1.6, 2.2, 364, 456, 0.4),
        _scaled("efficientnet-b6", _V1_BASE, 1.8, 2.6, 422, 528, 0.5),
        _scaled("efficientnet-b7", _V1_BASE, 2.0, 3.1, 480, 600, 0.5),
        _scaled("efficientnet-b8", _V1_BASE, 2.2, 3.6, 537, 672, 0.5),
        _scaled("efficientnet-l2", _V1_BASE, 4.3, 5.3, 640, 800, 0.5),
        _lite(0, 1.0, 1.0, 224, 0.2),
        _lite(1, 1.0, 1.1, 240, 0.2),
        _lite(2, 1.1, 1.2, 260, 0.3),
        _lite(3, 1.2, 1.4, 280, 0.3),
        _lite(4, 1.4, 1.8, 300, 0.3),
        _fuse_first(_B4, 3),
        _fuse_first(_B4, 5),
        _fuse_first(_B4, 7),
        EfficientNetSpec(
            "efficientnetv2-rw-t",
            _RW_T,
            24,
            1024,
            224,
            288,
            0.2,
            "torch,crop=1.0",
            bn_epsilon=1e-5,
            padding="symmetric",
        ),
        EfficientNetSpec("efficientnetv2-tiny", _TINY, 8, 64, 32, 32, 0.1, "v2"),
    )
}
