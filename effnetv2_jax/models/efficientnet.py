"""MBConv, Fused-MBConv (Figure 2) and the one network built out of them."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from effnetv2_jax.models.efficientnet_specs import EfficientNetSpec, squeezed_filters
from effnetv2_jax.models.family import Network
from effnetv2_jax.models.kernels.activations import Origin
from effnetv2_jax.models.kernels.convolutions import PADDINGS
from effnetv2_jax.models.layers import (
    BATCH_STATISTICS,
    CONVOLUTION,
    AxisName,
    BatchNorm,
    Conv,
    DepthwiseConv,
    SqueezeExcite,
    check_images,
    dense_kernel_init,
    dropout,
    global_average_pool,
    stochastic_depth,
    uniform_by_example,
)
from effnetv2_jax.models.scanning import Draws, equal_runs, scan
from effnetv2_jax.runtime.errors import UsageError, unknown_name

Norm = Callable[..., BatchNorm]


class ConvNorm(nnx.Module):
    """A convolution, its batch norm, and an activation (None for a linear output).

    Folded (``folding.fold_batch_norm``), it has no batch norm and no training.
    """

    def __init__(self, conv: Conv | DepthwiseConv, norm: BatchNorm, activation: str | None = None):
        self.conv = conv
        self.norm: BatchNorm | None = norm
        self.activation = activation

    def __call__(
        self, x: jax.Array, *, train: bool | None = None, origin: Origin | None = None
    ) -> jax.Array:
        return self.with_origin(x, train=train, origin=origin)[0]

    def with_origin(
        self, x: jax.Array, *, train: bool | None = None, origin: Origin | None = None
    ) -> tuple[jax.Array, Origin | None]:
        """The result and its origin, of an input and, if it has one, its own."""
        if self.norm is not None:
            x = self.conv(x, origin)
            origin = self.norm.origin(x, train=train, activation=self.activation)
            return origin.value(), origin
        if train:
            raise UsageError(
                "a model with folded batch norm cannot be trained: train must be False"
            )
        return self.conv(x, activation=self.activation), None


def _squeeze_excite(
    in_filters: int, expanded: int, se_ratio: float, activation: str, dtype, rngs: nnx.Rngs
) -> SqueezeExcite | None:
    """SE on the expanded channels; None where a block has none."""
    if not (squeezed := squeezed_filters(in_filters, se_ratio)):
        return None
    return SqueezeExcite(expanded, squeezed, activation=activation, dtype=dtype, rngs=rngs)


class _Residual(nnx.Module):
    """What both blocks share: a skip where shapes allow it, with stochastic depth around it."""

    def __init__(self, has_skip: bool, survival_prob: float):
        self.has_skip = has_skip
        self.survival_prob = survival_prob
        self.deterministic = True

    def _branch(self, x: jax.Array, train: bool | None) -> jax.Array:
        raise TypeError(f"{type(self).__name__} has no branch")

    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool | None = None,
        rngs: nnx.Rngs | None = None,
        index: jax.Array | None = None,
        draw: jax.Array | None = None,
        survival_prob: jax.Array | None = None,
    ) -> jax.Array:
        """Maps [batch, height, width, in_filters] to [batch, ceil(height / stride), …, filters].

        Args:
            x: the input.
            train: True uses the batch's statistics and stochastic depth; None does what
                ``.train()`` or ``.eval()`` said last (a new block is in evaluation mode).
            rngs: gives the ``dropout`` key; needed in training where survival_prob < 1.
            index: int32 [batch], the number of each image, of which its fate is a function, with
                the key. None for 0 … batch − 1.
            draw: as for ``layers.stochastic_depth``, in place of rngs and index: a network draws
                for all of its blocks at once.
            survival_prob: float32 scalar, in place of the block's own; goes with draw.
        """
        y = self._branch(x, train)
        if not self.has_skip:
            return y
        training = not self.deterministic if train is None else train
        if training and (draw is not None or self.survival_prob < 1.0):
            if draw is None:
                if rngs is None:
                    raise UsageError("training a block with survival_prob < 1 needs rngs, got None")
                index = jnp.arange(len(x)) if index is None else index
                draw = uniform_by_example(rngs.dropout(), index)
            prob = self.survival_prob if survival_prob is None else survival_prob
            y = stochastic_depth(y, prob, draw)
        return x + y


class MBConv(_Residual):
    """Expand 1×1, depthwise k×k, squeeze-and-excite, project 1×1 (Figure 2, right).

    Args:
        in_filters: channels of the input.
        filters: channels of the output.
        kernel_size: of the depthwise convolution.
        stride: of the depthwise convolution.
        expand_ratio: channels of the depthwise convolution over in_filters; 1 leaves out the
            expansion.
        se_ratio: squeeze filters over in_filters; 0 leaves out SE.
        survival_prob: of the branch in training, where there is a skip (stride 1, equal filters).
        padding: of the convolutions, one of ``convolutions.PADDINGS``.
        activation: a name in ``activations.ACTIVATIONS``.
        norm: makes a normalisation from its number of channels and ``dtype=``.
        dtype: of the computation; parameters stay float32.
        rngs: gives the ``params`` keys.
    """

    def __init__(
        self,
        in_filters: int,
        filters: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        expand_ratio: int = 4,
        se_ratio: float = 0.25,
        survival_prob: float = 1.0,
        padding: str = "same",
        activation: str = "silu",
        norm: Norm = BatchNorm,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(stride == 1 and in_filters == filters, survival_prob)
        expanded = in_filters * expand_ratio
        conv = functools.partial(Conv, dtype=dtype, rngs=rngs)
        norm = functools.partial(norm, dtype=dtype)
        self.expand = (
            ConvNorm(conv(in_filters, expanded), norm(expanded), activation)
            if expand_ratio != 1
            else None
        )
        self.depthwise = ConvNorm(
            DepthwiseConv(
                expanded,
                kernel_size=kernel_size,
                stride=stride,
                padding=padding,
                dtype=dtype,
                rngs=rngs,
            ),
            norm(expanded),
            activation,
        )
        self.se = _squeeze_excite(in_filters, expanded, se_ratio, activation, dtype, rngs)
        self.project = ConvNorm(conv(expanded, filters), norm(filters))

    def _branch(self, x: jax.Array, train: bool | None) -> jax.Array:
        origin = None
        if self.expand is not None:
            x, origin = self.expand.with_origin(x, train=train)
        x, origin = self.depthwise.with_origin(x, train=train, origin=origin)
        if self.se is not None:
            x, origin = self.se.with_origin(x, origin)
        return self.project(x, train=train, origin=origin)


class FusedMBConv(_Residual):
    """Expand k×k, squeeze-and-excite (off in V2), project 1×1 (Figure 2, left).

    With expand_ratio 1 there is a single k×k convolution, followed by the activation.

    Args:
        in_filters: channels of the input.
        filters: channels of the output.
        kernel_size: of the first convolution.
        stride: of the first convolution.
        expand_ratio: channels inside the block over in_filters.
        se_ratio: squeeze filters over in_filters; 0 leaves out SE.
        survival_prob: of the branch in training, where there is a skip (stride 1, equal filters).
        padding: of the convolutions, one of ``convolutions.PADDINGS``.
        activation: a name in ``activations.ACTIVATIONS``.
        norm: makes a normalisation from its number of channels and ``dtype=``.
        dtype: of the computation; parameters stay float32.
        rngs: gives the ``params`` keys.
    """

    def __init__(
        self,
        in_filters: int,
        filters: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        expand_ratio: int = 4,
        se_ratio: float = 0.0,
        survival_prob: float = 1.0,
        padding: str = "same",
        activation: str = "silu",
        norm: Norm = BatchNorm,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(stride == 1 and in_filters == filters, survival_prob)
        expanded = in_filters * expand_ratio
        conv = functools.partial(Conv, dtype=dtype, rngs=rngs)
        spatial = functools.partial(conv, kernel_size=kernel_size, stride=stride, padding=padding)
        norm = functools.partial(norm, dtype=dtype)
        self.expand = (
            ConvNorm(spatial(in_filters, expanded), norm(expanded), activation)
            if expand_ratio != 1
            else None
        )
        self.se = _squeeze_excite(in_filters, expanded, se_ratio, activation, dtype, rngs)
        if expand_ratio != 1:
            self.project = ConvNorm(conv(expanded, filters), norm(filters))
        else:
            self.project = ConvNorm(spatial(in_filters, filters), norm(filters), activation)

    def _branch(self, x: jax.Array, train: bool | None) -> jax.Array:
        origin = None
        if self.expand is not None:
            x, origin = self.expand.with_origin(x, train=train)
        if self.se is not None:
            x, origin = self.se.with_origin(x, origin)
        return self.project(x, train=train, origin=origin)


_BLOCKS: dict[str, type[MBConv] | type[FusedMBConv]] = {"mbconv": MBConv, "fused": FusedMBConv}


REMAT = ("none", "blocks", "stages")
"""What is computed anew together in the backward pass, of blocks in a row.

Of each such row, training keeps the input and batch norm's statistics alone: those are small, and
computing them anew would send them between devices once more.
"""

_KEEP_STATISTICS = jax.checkpoint_policies.save_only_these_names(BATCH_STATISTICS)
# A loop keeps what it may. Of straight code, XLA computes by itself anew what is elementwise.
_KEEP_CONVOLUTIONS = jax.checkpoint_policies.save_only_these_names(CONVOLUTION, BATCH_STATISTICS)


class EfficientNet(Network):
    """EfficientNet V1, V2, Lite and the hybrids between them, as their spec says.

    Parameters are float32. A new model is in evaluation mode: ``model(images)`` uses the moving
    statistics and no dropout until ``.train()`` is called or ``train=True`` is given.

    Args:
        spec: the network.
        num_classes: of the classifier; 0 leaves it out, and the model returns pooled features.
        dtype: of the computation, float32 or bfloat16.
        axis_name: mesh axis, or axes, over whose devices batch norm averages its statistics in
            training.
        bn_group_size: neighbouring devices that do so together, at most all; None for all.
        remat: a name in ``REMAT``: what training computes anew in the backward pass, and does not
            keep in memory.
        scan_blocks: equal blocks in a row are a loop, which is compiled in less time. Parameters,
            statistics and results are those of the same model without.
        rngs: gives the ``params`` keys and the ``dropout`` key that training falls back on.
    """

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
        if num_classes < 0:
            raise UsageError(f"num_classes must be 0 (pooled features) or more, got {num_classes}")
        if spec.padding not in PADDINGS:
            raise unknown_name("padding", spec.padding, PADDINGS)
        if remat not in REMAT:
            raise unknown_name("remat", remat, REMAT)
        self.spec = spec
        self.deterministic = True
        conv = functools.partial(Conv, dtype=dtype, rngs=rngs)
        norm = functools.partial(
            BatchNorm,
            momentum=spec.bn_momentum,
            epsilon=spec.bn_epsilon,
            axis_name=axis_name,
            group_size=bn_group_size,
        )
        self.stem = ConvNorm(
            conv(3, spec.stem_filters, kernel_size=3, stride=2, padding=spec.padding),
            norm(spec.stem_filters, dtype=dtype),
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
                    # Block i of n survives with 1 − (1 − p)·i/n.
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
        # A reduction ends where the next block halves the image, and at the last block.
        strides = [block.stride for block in blocks[1:]] + [2]
        self.reduction_ends = tuple(i for i, stride in enumerate(strides) if stride > 1)
        self.remat = remat
        # Numbers of blocks: those that are one loop, and of such runs those that are one row.
        runs = equal_runs(blocks) if scan_blocks else [range(i, i + 1) for i in range(len(blocks))]
        by_group = itertools.groupby(runs, key=lambda run: blocks[run.start].group)
        rows = (
            [tuple(group) for _, group in by_group] if remat == "stages" else [(r,) for r in runs]
        )
        self.rows = tuple(rows)
        self.head = ConvNorm(
            conv(spec.groups[-1].filters, spec.head_filters),
            norm(spec.head_filters, dtype=dtype),
            spec.activation,
        )
        self.classifier = (
            nnx.Linear(
                spec.head_filters,
                num_classes,
                kernel_init=functools.partial(dense_kernel_init, scale=spec.head_init_scale),
                dtype=dtype,
                rngs=rngs,
            )
            if num_classes
            else None
        )
        # Linen's init may bring a params key alone.
        has_dropout = "dropout" in rngs or "default" in rngs
        self.rngs = nnx.Rngs(dropout=rngs.dropout() if has_dropout else rngs.params())

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool | None = None,
        rngs: nnx.Rngs | None = None,
        dropout_rate: float | jax.Array | None = None,
        index: jax.Array | None = None,
    ) -> jax.Array:
        """Classifies images.

        Args:
            images: float [batch, height, width, 3], normalised as ``spec.preprocessing`` says; any
                height and width.
            train: True uses the batch's statistics, stochastic depth and dropout; None does what
                ``.train()`` or ``.eval()`` said last.
            rngs: gives the ``dropout`` key in training; None takes the model's own.
            dropout_rate: before the classifier, may be traced; None takes the spec's.
            index: int32 [batch], the number of each image, of which stochastic depth and dropout
                are a function, with the key: an image then has the same fate wherever in a batch,
                and on whatever device, it lies. None for 0 … batch − 1.

        Returns:
            float32 logits [batch, num_classes], or float32 pooled features [batch, head_filters]
            where num_classes is 0.
        """
        training = self._is_training(train)
        rngs = self.rngs if rngs is None else rngs
        x, _ = self._body(images, training, rngs, index)
        x = global_average_pool(self.head(x, train=training))
        if self.classifier is None:
            return x
        rate = self.spec.dropout_rate if dropout_rate is None else dropout_rate
        if training:
            x = dropout(x, rate, rngs.dropout(), index)
        return self.classifier(x).astype(jnp.float32)

    def features(
        self,
        images: jax.Array,
        *,
        train: bool | None = None,
        rngs: nnx.Rngs | None = None,
        index: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Feature maps for detection and segmentation.

        Args:
            images: as for ``__call__``.
            train: as for ``__call__``.
            rngs: as for ``__call__``.
            index: as for ``__call__``.

        Returns:
            ``reduction_1`` … ``reduction_5``: [batch, ceil(height / 2^i), …, filters], the last
            block at each scale, in the compute dtype.
        """
        rngs = self.rngs if rngs is None else rngs
        return self._body(images, self._is_training(train), rngs, index)[1]

    def _is_training(self, train: bool | None) -> bool:
        return not self.deterministic if train is None else train

    def _body(
        self, images: jax.Array, training: bool, rngs: nnx.Rngs, index: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        check_images(images, index)
        x = self.stem(images, train=training)
        reductions: dict[str, jax.Array] = {}

        # One program for the random numbers of all blocks: they are small, and dear to compile.
        draws: Draws = [None] * len(self.blocks)
        if training and self.spec.survival_prob < 1.0:
            index = jnp.arange(len(images)) if index is None else index
            draws = list(uniform_by_example(rngs.dropout(), index, (len(self.blocks),)).T)

        for row in self.rows:
            x = self._run(row, x, training, draws)
            if row[-1].stop - 1 in self.reduction_ends:
                reductions[f"reduction_{len(reductions) + 1}"] = x
        return x, reductions

    def _run(self, row: tuple[range, ...], x: jax.Array, training: bool, draws: Draws) -> jax.Array:
        """Calls the blocks of some runs in a row."""
        first, end = row[0].start, row[-1].stop
        # A loop computes its blocks anew one by one.
        one_by_one = self.remat == "blocks" and end - first > 1
        policy = _KEEP_STATISTICS if one_by_one else _KEEP_CONVOLUTIONS

        def call(blocks: nnx.List, x: jax.Array, draws: Draws) -> jax.Array:
            for run in row:
                some = slice(run.start - first, run.stop - first)
                if len(run) > 1:
                    x = scan(blocks[some], x, draws[some], train=training, remat_policy=policy)
                else:
                    x = blocks[some.start](x, train=training, draw=draws[some.start])
            return x

        if training and self.remat != "none" and not one_by_one:
            call = nnx.remat(call, policy=_KEEP_STATISTICS)
        return call(nnx.List(self.blocks[first:end]), x, draws[first:end])
