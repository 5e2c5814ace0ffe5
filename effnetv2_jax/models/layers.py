"""The layers of the networks: convolutions, batch norm, squeeze-and-excitation, stochastic depth.

Arrays are NHWC. Parameters are float32; ``dtype`` is the dtype of the computation. A layer takes an
array or the ``Normalized`` that batch norm returns, which can be used as one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from effnetv2_jax.models.initializers import conv_kernel_init, depthwise_kernel_init, full
from effnetv2_jax.models.kernels import convolutions
from effnetv2_jax.models.kernels.activations import (
    Normalized,
    Value,
    activated,
    gated,
    normalize,
    per_channel,
)
from effnetv2_jax.models.kernels.isolation import isolated
from effnetv2_jax.models.kernels.platforms import by_platform
from effnetv2_jax.runtime.errors import UsageError

# One mesh axis or several.
AxisName = str | tuple[str, ...]

BATCH_STATISTICS = "batch_statistics"
"""The name of batch norm's means for ``jax.checkpoint``. They are small, and slow to recompute."""

CONVOLUTION = "convolution"
"""The name of a convolution's result for ``jax.checkpoint``. What follows it is cheap."""


def check_images(images: jax.Array, index: jax.Array | None = None, channels: int = 3) -> None:
    """Raises UsageError unless images are floats of this many channels and index is [batch]."""
    if images.ndim != 4 or images.shape[-1] != channels:
        raise UsageError(
            f"images must have shape [batch, height, width, {channels}], got {list(images.shape)}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UsageError(f"images must be normalised floats, got dtype {images.dtype}")
    if index is not None and index.shape != images.shape[:1]:
        raise UsageError(
            f"index must have the batch's shape {list(images.shape[:1])}, got {list(index.shape)}"
        )


def modes(module: nnx.Module) -> tuple[bool, ...]:
    """Returns True for each mode in a module that ``.train()`` set, False if it was ``.eval()``.

    Modes are the attributes by which NNX keeps them: ``deterministic`` of what is random, and
    ``use_running_average`` of batch norm.
    """
    parts = (vars(part) for _, part in nnx.iter_modules(module))
    names = ("deterministic", "use_running_average")
    return tuple(not part[name] for part in parts for name in names if name in part)


def trains(module: nnx.Module, train: bool | None) -> bool:
    """Returns True if a call with ``train`` computes any part of a module as in training."""
    return any(modes(module)) if train is None else train


def uniform_by_example(key: jax.Array, index: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    """Draws uniform numbers in [0, 1). Those of an example depend only on the key and its number.

    They do not depend on the device that has the example, nor on the rest of the batch.

    Args:
        key: A JAX random key.
        index: The examples' numbers, int32 [batch].
        shape: The shape of the numbers for one example.

    Returns:
        float32 [batch, *shape].
    """

    def draw(number: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, number), shape, jnp.float32)

    return jax.vmap(draw)(index)


def stochastic_depth(x: jax.Array, survival_prob: float | jax.Array, draw: jax.Array) -> jax.Array:
    """Zeroes whole images of a batch with probability 1 − survival_prob and rescales the others.

    This is Huang et al. 2016 (arXiv 1603.09382), rescaled in training as in the official code.

    Args:
        x: The residual branch, [batch, ...].
        survival_prob: The probability in (0, 1]; it may be traced.
        draw: Uniform numbers in [0, 1) from ``uniform_by_example``, float32 [batch].
    """
    keep = draw.reshape(-1, *(1,) * (x.ndim - 1)) < survival_prob
    return jnp.where(keep, x / jnp.asarray(survival_prob, x.dtype), jnp.zeros_like(x))


def dropout(
    x: jax.Array, rate: float | jax.Array, key: jax.Array, index: jax.Array | None = None
) -> jax.Array:
    """Zeroes elements with probability ``rate`` and rescales the others.

    Args:
        x: [batch, ...].
        rate: The probability in [0, 1). It may be traced, since it changes from stage to stage
            and only a change of shape should compile a new program.
        key: A JAX random key.
        index: The number of each image, int32 [batch]. Images with equal numbers lose the same
            elements. None takes 0 … batch − 1.
    """
    index = jnp.arange(x.shape[0]) if index is None else index
    keep = uniform_by_example(key, index, x.shape[1:]) < 1.0 - rate
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros_like(x))


def global_average_pool(x: Value) -> jax.Array:
    """Averages over the pixels: [batch, height, width, channels] → float32 [batch, channels]."""
    # Isolated on CPU: XLA would hand the matrix products before and after it to YNNPACK as well.
    return by_platform(jnp.asarray(x), cpu=_pixel_means_on_cpu, default=_pixel_means)


def _pixel_means(x: jax.Array) -> jax.Array:
    return x.mean((1, 2), dtype=jnp.float32)


_pixel_means_on_cpu = isolated(_pixel_means)


def _pixel_maxima(x: Value) -> jax.Array:
    return jnp.asarray(x).max((1, 2)).astype(jnp.float32)


POOLINGS: dict[str, Callable[[Value], jax.Array]] = {
    "avg": global_average_pool,
    "max": _pixel_maxima,
    "avgmax": lambda x: (global_average_pool(x) + _pixel_maxima(x)) / 2,
    "none": lambda x: jnp.asarray(x).astype(jnp.float32),
}
"""Names of poolings, as in timm: float32 [batch, channels] from [batch, height, width, channels].

``avgmax`` is the mean of the other two. ``none`` keeps the pixels, each of which is classified.
"""


class Conv(nnx.Module):
    """A dense convolution.

    Args:
        in_channels: The number of channels of the input.
        out_channels: The number of channels of the output.
        kernel_size: The side of the square kernel in px.
        stride: The stride in both directions.
        padding: One of ``convolutions.PADDINGS``.
        dilation: The distance in px of the pixels that neighbours in the kernel read; more than 1
            needs stride 1.
        use_bias: Whether to add a bias, which starts at 0.
        dtype: The dtype of the computation. The kernel [kernel_size, kernel_size, in_channels,
            out_channels] stays float32.
        rngs: Gives the ``params`` key.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        padding: str = "same",
        dilation: int = 1,
        use_bias: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.kernel = nnx.Param(conv_kernel_init(rngs.params(), shape))
        self.bias = nnx.Param(full(out_channels, 0.0)) if use_bias else None
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.dtype = dtype

    def __call__(self, x: Value, activation: str | None = None) -> jax.Array:
        """Convolves, adds the bias if there is one, and computes an activation.

        Args:
            x: [batch, height, width, in_channels].
            activation: A name in ``ACTIVATIONS``, or None for the identity.

        Returns:
            [batch, ceil(height / stride), ceil(width / stride), out_channels].
        """
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        y = convolutions.conv(x, kernel, self.stride, self.padding, self.dilation)
        y = checkpoint_name(y, CONVOLUTION)
        y = y if self.bias is None else y + per_channel(self.bias[...].astype(self.dtype), y.ndim)
        return activated(y, activation)


class DepthwiseConv(nnx.Module):
    """A depthwise convolution with multiplier 1. Its bias comes from folded batch norm.

    Args:
        channels: The number of channels of input and output.
        kernel_size: The side of the square kernel in px.
        stride: The stride in both directions.
        padding: One of ``convolutions.PADDINGS``.
        dilation: The distance in px of the pixels that the kernel reads, as for ``Conv``.
        dtype: The dtype of the computation. The kernel [kernel_size, kernel_size, 1, channels]
            stays float32.
        rngs: Gives the ``params`` key.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        padding: str = "same",
        dilation: int = 1,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, kernel_size, 1, channels)
        self.kernel = nnx.Param(depthwise_kernel_init(rngs.params(), shape))
        self.bias: nnx.Param | None = None
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.dtype = dtype

    def __call__(self, x: Value, activation: str | None = None) -> jax.Array:
        """Convolves, adds the bias if there is one, and computes an activation, as ``Conv``."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if self.bias is not None:
            bias = self.bias[...].astype(self.dtype)
            return convolutions.biased_depthwise_conv(
                x, kernel, bias, self.stride, self.padding, activation, self.dilation
            )
        y = convolutions.depthwise_conv(x, kernel, self.stride, self.padding, self.dilation)
        return activated(checkpoint_name(y, CONVOLUTION), activation)


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last.

    Statistics are float32 for every compute dtype. The variance is E[x²] − E[x]², the form that can
    be averaged over devices, and the moving variance is the biased one. Both are as in the official
    ``TpuBatchNormalization``.

    Args:
        channels: The size of the last axis.
        momentum: The momentum of the moving statistics.
        epsilon: A number added to the variance.
        axis_name: The mesh axis, or axes, over whose devices the statistics of a batch are
            averaged. None keeps them local to the device.
        group_size: The number of neighbouring devices that average together; at most all of them
            do. None takes all.
        dtype: The dtype of the output.
    """

    def __init__(
        self,
        channels: int,
        *,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        axis_name: AxisName | None = None,
        group_size: int | None = None,
        dtype=jnp.float32,
    ):
        self.scale = nnx.Param(full(channels, 1.0))
        self.bias = nnx.Param(full(channels, 0.0))
        self.mean = nnx.BatchStat(full(channels, 0.0))
        self.var = nnx.BatchStat(full(channels, 1.0))
        self.momentum = momentum
        self.epsilon = epsilon
        self.axis_name = axis_name
        self.group_size = group_size
        self.dtype = dtype
        self.use_running_average = True

    def __call__(
        self, x: jax.Array, *, train: bool | None = None, activation: str | None = None
    ) -> Normalized:
        """Normalises x and computes an activation.

        Args:
            x: [..., channels].
            train: True uses the batch's statistics and updates the moving ones. None does what
                ``.train()`` or ``.eval()`` said last; a new module is in evaluation mode.
            activation: A name in ``ACTIVATIONS``, or None for the identity.

        Returns:
            A value that is used like an array [..., channels]; its ``array`` is one.
        """
        if train is None:
            train = not self.use_running_average
        if train:
            mean, var = self._batch_statistics(x)
            self.mean.set_value(self._moved(self.mean, mean))
            self.var.set_value(self._moved(self.var, var))
        else:
            mean, var = self.mean[...], self.var[...]
        scale = self.scale[...] * lax.rsqrt(var + self.epsilon)
        return normalize(x, scale, self.bias[...] - mean * scale, activation, self.dtype)

    def _moved(self, average: nnx.BatchStat, value: jax.Array) -> jax.Array:
        return self.momentum * average[...] + (1 - self.momentum) * value

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        axes = tuple(range(x.ndim - 1))
        x = x.astype(jnp.float32)
        mean, mean_of_squares = x.mean(axes), jnp.square(x).mean(axes)
        devices = 1 if self.axis_name is None else lax.axis_size(self.axis_name)
        groups = device_groups(devices, self.group_size)
        # XLA would keep an exchange in a group of one, in every layer, and fuse nothing across it.
        if len(groups[0]) > 1:
            # As one array, which is sent in one message.
            together = jnp.stack([mean, mean_of_squares])
            together = lax.psum(together, self.axis_name, axis_index_groups=groups)
            mean, mean_of_squares = together / len(groups[0])
        mean, mean_of_squares = checkpoint_name((mean, mean_of_squares), BATCH_STATISTICS)
        # Rounding can push the difference of a constant channel below zero.
        return mean, jnp.maximum(mean_of_squares - jnp.square(mean), 0.0)


def device_groups(devices: int, group_size: int | None) -> list[list[int]]:
    """Returns the groups of devices, by number, that average a batch's statistics together.

    Args:
        devices: The number of devices.
        group_size: The number of neighbours in a group, at most all. None takes all. The official
            code's is 8.

    Raises:
        UsageError: If group_size does not divide the number of devices.
    """
    size = devices if group_size is None else min(group_size, devices)
    if size < 1 or devices % size:
        raise UsageError(f"bn_group_size must divide the number of devices ({devices}), got {size}")
    return np.arange(devices).reshape(-1, size).tolist()


class SqueezeExcite(nnx.Module):
    """Squeeze-and-excitation (Hu et al. 2018): scales channels by a gate computed from their means.

    Args:
        channels: The number of channels of input and output.
        reduced_channels: The number of channels of the bottleneck.
        activation: The activation of the bottleneck, a name in ``ACTIVATIONS``.
        dtype: The dtype of the computation.
        rngs: Gives the ``params`` keys.
    """

    def __init__(
        self,
        channels: int,
        reduced_channels: int,
        *,
        activation: str = "silu",
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.reduce = Conv(channels, reduced_channels, use_bias=True, dtype=dtype, rngs=rngs)
        self.expand = Conv(reduced_channels, channels, use_bias=True, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Value) -> Value:
        """Maps [batch, height, width, channels] to the same shape, and a value to a value."""
        # The mean of many bfloat16 numbers needs a float32 sum.
        means = jnp.asarray(x).mean((1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
        gate = jax.nn.sigmoid(self.expand(self.reduce(means, self.activation)))
        return gated(x, gate)


class ConvNorm(nnx.Module):
    """A convolution, its batch norm, and an activation.

    ``folding.fold_batch_norm`` takes away the batch norm; training is refused from then on.

    Args:
        conv: The convolution.
        norm: The batch norm of its output.
        activation: A name in ``ACTIVATIONS``, or None for a linear output.
    """

    def __init__(self, conv: Conv | DepthwiseConv, norm: BatchNorm, activation: str | None = None):
        self.conv = conv
        self.norm: BatchNorm | None = norm
        self.activation = activation
        self.use_running_average = True

    def __call__(self, x: Value, train: bool | None = None) -> Value:
        """Calls the convolution, then batch norm with ``train`` and the activation."""
        if self.norm is not None:
            return self.norm(self.conv(x), train=train, activation=self.activation)
        if train or (train is None and not self.use_running_average):
            raise UsageError(
                "a model with folded batch norm cannot be trained: train must be False"
            )
        return self.conv(x, self.activation)
