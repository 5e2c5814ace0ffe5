"""MBConv, Fused-MBConv (Figure 2 of the paper) and the network that is built from them."""

import abc
import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from effnetv2_jax.models.efficientnet_specs import OUTPUT_STRIDES, EfficientNetSpec
from effnetv2_jax.models.family import Feature, Network, dropout_rngs
from effnetv2_jax.models.initializers import dense_kernel_init
from effnetv2_jax.models.kernels.activations import Value
from effnetv2_jax.models.kernels.convolutions import PADDINGS
from effnetv2_jax.models.layers import (
    BATCH_STATISTICS,
    CONVOLUTION,
    POOLINGS,
    AxisName,
    BatchNorm,
    Conv,
    ConvNorm,
    DepthwiseConv,
    SqueezeExcite,
    stochastic_depth,
    trains,
    uniform_by_example,
)
from effnetv2_jax.models.scanning import Draws, equal_runs, scan
from effnetv2_jax.runtime.errors import UsageError, unknown_name


def _identity(x: Value, train: bool | None = None) -> Value:
    """Stands in for a part that a block leaves out."""
    return x


def _normed(
    conv: Conv | DepthwiseConv, norm: Callable[..., BatchNorm], activation: str | None
) -> ConvNorm:
    """Returns a convolution with a batch norm of its channels and dtype."""
    return ConvNorm(conv, norm(conv.kernel.shape[-1], dtype=conv.dtype), activation)


def _squeeze_excite(
    in_filters: int, inside: int, se_ratio: float, **arguments: Any
) -> Callable[[Value], Value]:
    if se_ratio <= 0:
        return _identity
    return SqueezeExcite(inside, max(1, int(in_filters * se_ratio)), **arguments)


class _Block(nnx.Module):
    """A block whose output is added to its input if their shapes are equal."""

    def __init__(self, in_filters: int, filters: int, stride: int, survival_prob: float):
        self.has_skip = stride == 1 and in_filters == filters
        self.survival_prob = survival_prob
        self.deterministic = True

    @abc.abstractmethod
    def branch(self, x: Value, train: bool | None = None) -> Value:
        """Computes the block without its skip."""

    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool | None = None,
        rngs: nnx.Rngs | None = None,
        draw: jax.Array | None = None,
        survival_prob: jax.Array | None = None,
    ) -> jax.Array:
        """Computes the block.

        Args:
            x: [batch, height, width, in_filters].
            train: True uses the batch's statistics and stochastic depth. None does what
                ``.train()`` or ``.eval()`` said last; a new block is in evaluation mode.
            rngs: Gives the ``dropout`` key, which training needs if survival_prob < 1.
            draw: Uniform numbers in [0, 1), float32 [batch], in place of rngs: a network draws for
                all of its blocks at once.
            survival_prob: A float32 scalar in place of the block's own; goes with draw.

        Returns:
            [batch, ceil(height / stride), ceil(width / stride), filters], of the compute dtype.
        """
        y = jnp.asarray(self.branch(x, train))
        if not self.has_skip:
            return y
        training = not self.deterministic if train is None else train
        if training and (draw is not None or self.survival_prob < 1.0):
            if draw is None:
                if rngs is None:
                    raise UsageError("training a block with survival_prob < 1 needs rngs, got None")
                draw = uniform_by_example(rngs.dropout(), jnp.arange(x.shape[0]))
            prob = self.survival_prob if survival_prob is None else survival_prob
            y = stochastic_depth(y, prob, draw)
        return x + y


class MBConv(_Block):
    """Expand 1 × 1, depthwise k × k, squeeze-and-excite, project 1 × 1 (Figure 2, right).

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> block = MBConv(4, 8, stride=2, rngs=nnx.Rngs(0))
    >>> jax.eval_shape(block, jnp.ones((2, 16, 16, 4))).shape
    (2, 8, 8, 8)

    Args:
        in_filters: The number of channels of the input.
        filters: The number of channels of the output.
        kernel_size: The side of the k × k kernel in px.
        stride: The stride of the k × k convolution.
        dilation: The dilation of the k × k convolution; more than 1 needs stride 1.
        expand_ratio: The number of channels inside the block over in_filters; 1 leaves out the
            expansion.
        se_ratio: The number of channels in SE's bottleneck over in_filters; 0 leaves out SE.
        survival_prob: The probability that training keeps the branch of an image, if there is a
            skip (stride 1, equal filters).
        padding: One of ``convolutions.PADDINGS``.
        activation: A name in ``activations.ACTIVATIONS``.
        norm: Makes a batch norm from a number of channels and ``dtype=``.
        dtype: The dtype of the computation; parameters stay float32.
        rngs: Gives the ``params`` keys.
    """

    def __init__(
        self,
        in_filters: int,
        filters: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        expand_ratio: int = 4,
        se_ratio: float = 0.25,
        survival_prob: float = 1.0,
        padding: str = "same",
        activation: str = "silu",
        norm: Callable[..., BatchNorm] = BatchNorm,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_filters, filters, stride, survival_prob)
        inside = in_filters * expand_ratio
        pointwise = functools.partial(Conv, dtype=dtype, rngs=rngs)
        self.expand = (
            _identity
            if expand_ratio == 1
            else _normed(pointwise(in_filters, inside), norm, activation)
        )
        self.depthwise = _normed(
            DepthwiseConv(
                inside,
                kernel_size=kernel_size,
                stride=stride,
                padding=padding,
                dilation=dilation,
                dtype=dtype,
                rngs=rngs,
            ),
            norm,
            activation,
        )
        self.se = _squeeze_excite(
            in_filters, inside, se_ratio, activation=activation, dtype=dtype, rngs=rngs
        )
        self.project = _normed(pointwise(inside, filters), norm, None)

    def branch(self, x: Value, train: bool | None = None) -> Value:
        x = self.expand(x, train)
        # By name, because nnx.tabulate fails to show a ``Normalized`` by position.
        x = self.depthwise(x=x, train=train)
        x = self.se(x)
        return self.project(x=x, train=train)


class FusedMBConv(_Block):
    """Expand k × k, squeeze-and-excite (off in V2), project 1 × 1 (Figure 2, left).

    With expand_ratio 1 there is a single k × k convolution, followed by the activation. The
    arguments are those of ``MBConv``; se_ratio is 0 by default.

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> block = FusedMBConv(4, 4, rngs=nnx.Rngs(0))
    >>> jax.eval_shape(block, jnp.ones((2, 16, 16, 4))).shape
    (2, 16, 16, 4)
    """

    def __init__(
        self,
        in_filters: int,
        filters: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        expand_ratio: int = 4,
        se_ratio: float = 0.0,
        survival_prob: float = 1.0,
        padding: str = "same",
        activation: str = "silu",
        norm: Callable[..., BatchNorm] = BatchNorm,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_filters, filters, stride, survival_prob)
        inside = in_filters * expand_ratio
        pointwise = functools.partial(Conv, dtype=dtype, rngs=rngs)
        square = functools.partial(
            pointwise,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
        )
        self.expand = (
            _identity
            if expand_ratio == 1
            else _normed(square(in_filters, inside), norm, activation)
        )
        self.se = _squeeze_excite(
            in_filters, inside, se_ratio, activation=activation, dtype=dtype, rngs=rngs
        )
        self.project = (
            _normed(square(inside, filters), norm, activation)
            if expand_ratio == 1
            else _normed(pointwise(inside, filters), norm, None)
        )

    def branch(self, x: Value, train: bool | None = None) -> Value:
        x = self.expand(x, train)
        x = self.se(x)
        return self.project(x=x, train=train)


_BLOCKS: dict[str, type[MBConv] | type[FusedMBConv]] = {"mbconv": MBConv, "fused": FusedMBConv}


# Batch norm's statistics are small, and recomputing them would send them between devices once more.
_KEEP_STATISTICS = jax.checkpoint_policies.save_only_these_names(BATCH_STATISTICS)
# A loop keeps what it may. In straight code, XLA itself recomputes what is elementwise.
_KEEP_CONVOLUTIONS = jax.checkpoint_policies.save_only_these_names(CONVOLUTION, BATCH_STATISTICS)


class EfficientNet(Network):
    """EfficientNet V1, V2, Lite or a hybrid of them, as its spec says.

    Parameters are float32. A new model is in evaluation mode: ``model(images)`` uses the moving
    statistics and no dropout until ``.train()`` is called or ``train=True`` is given.

    >>> from flax import nnx
    >>> from effnetv2_jax.models import EfficientNet, get_spec
    >>> spec = get_spec("efficientnetv2-tiny")
    >>> model = nnx.eval_shape(lambda: EfficientNet(spec, num_classes=10, rngs=nnx.Rngs(0)))
    >>> len(model.blocks), model.classifier.kernel.shape
    (4, (64, 10))

    Args:
        spec: The network's spec, such as ``get_spec("efficientnetv2-s")``.
        num_classes: The number of classes. With 0, there is no classifier and the model returns
            pooled features.
        dtype: The dtype of the computation, as for ``create_model``.
        axis_name: The mesh axes of batch norm, as for ``create_model``.
        bn_group_size: The number of devices in a group of batch norm, as for ``create_model``.
        remat: A name in ``family.REMAT``.
        scan_blocks: Makes loops of equal blocks, as for ``create_model``.
        rngs: Gives the ``params`` keys, and the ``dropout`` key that training uses by default.
    """

    poolings = POOLINGS

    def __init__(
        self,
        spec: EfficientNetSpec,
        *,
        num_classes: int = 1000,
        dtype=jnp.float32,
        axis_name: AxisName | None = None,
        bn_group_size: int | None = None,
        remat: str = "none",
        scan_blocks: bool = False,
        rngs: nnx.Rngs,
    ):
        super().__init__(spec, num_classes, remat)
        if spec.padding not in PADDINGS:
            raise unknown_name("padding", spec.padding, PADDINGS)
        if spec.output_stride not in OUTPUT_STRIDES:
            allowed = ", ".join(map(str, OUTPUT_STRIDES))
            raise UsageError(f"output_stride must be one of {allowed}, got {spec.output_stride}")
        self.dtype = dtype
        conv = functools.partial(Conv, dtype=dtype, rngs=rngs)
        norm = functools.partial(
            BatchNorm,
            momentum=spec.bn_momentum,
            epsilon=spec.bn_epsilon,
            axis_name=axis_name,
            group_size=bn_group_size,
            dtype=dtype,
        )
        self.stem = ConvNorm(
            conv(
                spec.in_channels, spec.stem_filters, kernel_size=3, stride=2, padding=spec.padding
            ),
            norm(spec.stem_filters),
            spec.activation,
        )
        blocks = spec.blocks
        self.blocks = nnx.List(
            [
                _BLOCKS[block.op](
                    block.in_filters,
                    block.filters,
                    kernel_size=block.kernel_size,
                    stride=block.stride,
                    expand_ratio=block.expand_ratio,
                    se_ratio=block.se_ratio,
                    dilation=block.dilation,
                    # Block i of n survives with probability 1 − (1 − p) · i / n.
                    survival_prob=1.0 - (1.0 - spec.survival_prob) * i / len(blocks),
                    padding=spec.padding,
                    activation=spec.activation,
                    norm=norm,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i, block in enumerate(blocks)
            ]
        )
        # A reduction ends where the next group halves the image, or dilates in place of it.
        ends = list(itertools.accumulate(group.repeats for group in spec.groups))
        next_strides = [*(group.stride for group in spec.groups[1:]), 2]
        self.reduction_ends = tuple(
            end - 1 for end, stride in zip(ends, next_strides, strict=True) if stride > 1
        )
        # A run is a range of blocks in one loop. A row is a tuple of runs recomputed together.
        runs = equal_runs(blocks) if scan_blocks else [range(i, i + 1) for i in range(len(blocks))]
        by_group = itertools.groupby(runs, key=lambda run: blocks[run.start].group)
        stages = (tuple(group) for _, group in by_group)
        self.rows = tuple(stages) if remat == "stages" else tuple((run,) for run in runs)
        self.head = ConvNorm(
            conv(spec.groups[-1].filters, spec.head_filters),
            norm(spec.head_filters),
            spec.activation,
        )
        self.classifier = self.new_classifier(num_classes, rngs) if num_classes else None
        self.rngs = dropout_rngs(rngs)

    def new_classifier(self, num_classes: int, rngs: nnx.Rngs) -> nnx.Linear:
        init = functools.partial(dense_kernel_init, scale=self.spec.head_init_scale)
        return nnx.Linear(
            self.spec.head_filters, num_classes, kernel_init=init, dtype=self.dtype, rngs=rngs
        )

    def pooled(
        self, images: jax.Array, train: bool | None, rngs: nnx.Rngs, index: jax.Array | None
    ) -> jax.Array:
        # By name, because nnx.tabulate fails to show None beside other arguments by position.
        last = self.maps(
            images, train=train, rngs=rngs, index=index, count=len(self.reduction_ends)
        )[-1]
        return self.poolings[self.spec.pooling](self.head(last, train))

    @property
    def feature_info(self) -> tuple[Feature, ...]:
        blocks = self.spec.blocks
        reductions = list(itertools.accumulate((b.stride for b in blocks), operator.mul, initial=2))
        return tuple(
            Feature(f"reduction_{number}", blocks[end].filters, reductions[end + 1])
            for number, end in enumerate(self.reduction_ends, 1)
        )

    def maps(
        self,
        images: jax.Array,
        train: bool | None,
        rngs: nnx.Rngs,
        index: jax.Array | None,
        count: int,
    ) -> list[jax.Array]:
        x = jnp.asarray(self.stem(images, train))
        maps: list[jax.Array] = []

        # One program draws for all blocks: the numbers are few, but compiling takes long.
        draws: Draws = [None] * len(self.blocks)
        if self.spec.survival_prob < 1.0 and trains(self.blocks, train):
            index = jnp.arange(images.shape[0]) if index is None else index
            draws = list(uniform_by_example(rngs.dropout(), index, (len(self.blocks),)).T)

        for row in self.rows:
            x = self._run(row, x, train, draws)
            if row[-1].stop - 1 in self.reduction_ends:
                maps.append(x)
                if len(maps) == count:
                    break
        return maps

    def _run(
        self, row: tuple[range, ...], x: jax.Array, train: bool | None, draws: Draws
    ) -> jax.Array:
        """Calls the blocks of a row of runs."""
        first, end = row[0].start, row[-1].stop
        # A plain list: nnx.tabulate knows only the modules that were there before the call.
        blocks: list[MBConv | FusedMBConv] = self.blocks[first:end]
        # A loop recomputes its blocks one by one.
        one_by_one = self.remat == "blocks" and end - first > 1
        policy = _KEEP_STATISTICS if one_by_one else _KEEP_CONVOLUTIONS

        def call(blocks: list, x: jax.Array, draws: Draws) -> jax.Array:
            for run in row:
                some = slice(run.start - first, run.stop - first)
                if len(run) > 1:
                    x = scan(blocks[some], x, draws[some], train=train, remat_policy=policy)
                else:
                    x = blocks[some.start](x, train=train, draw=draws[some.start])
            return x

        remat = self.remat != "none" and not one_by_one
        if remat and any(trains(block, train) for block in blocks):
            call = nnx.remat(call, policy=_KEEP_STATISTICS)
        return call(blocks, x, draws[first:end])
