"""The vocabulary of the networks: convolutions, batch norm, squeeze-and-excite, stochastic depth.

Arrays are NHWC. Parameters are float32; ``dtype`` is the dtype of the computation.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from effnetv2_jax.models.kernels import convolutions
from effnetv2_jax.models.kernels.activations import ACTIVATIONS, Origin, activated, gated
from effnetv2_jax.models.kernels.isolation import isolated
from effnetv2_jax.runtime.errors import UsageError

# Of one mesh axis or of several.
AxisName = str | tuple[str, ...]

BATCH_STATISTICS = "batch_statistics"
"""The name of batch norm's means for ``jax.checkpoint``: small, and dear to compute anew."""

CONVOLUTION = "convolution"
"""Likewise of what convolutions return: what comes after them is elementwise, and cheap."""

_CHUNK = 1 << 16


@jax.jit
def _normal_chunk(key: jax.Array, index: jax.Array) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(key, index), (_CHUNK,))


def _normal(key: jax.Array, shape: tuple[int, ...], stddev: float) -> jax.Array:
    """Normal float32 numbers, the same eagerly and under a transformation.

    Drawn in chunks of one size: ``jax.random.normal`` compiles anew for every shape, which for
    V2-S's 37 kernel shapes took 22 s on two cores, and this less than one.
    """
    size = math.prod(shape)
    chunks = -(-size // _CHUNK)
    first = _normal_chunk(key, 0)
    if isinstance(first, jax.core.Tracer):
        flat = jax.vmap(_normal_chunk, (None, 0))(key, jnp.arange(chunks)).reshape(-1)
    else:
        flat = np.concatenate([first, *(_normal_chunk(key, i) for i in range(1, chunks))])
    return jax.device_put(flat[:size].reshape(shape) * np.float32(stddev))


def _full(channels: int, value: float) -> jax.Array:
    # By way of NumPy, since jnp.full and jnp.asarray compile anew for every size.
    return jax.device_put(np.full(channels, value, np.float32))


def conv_kernel_init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal with standard deviation sqrt(2 / fan_out), fan_out = height * width * out channels.

    Not truncated, as in the official code. ``shape`` is HWIO; float32.
    """
    height, width, _, out_channels = shape
    return _normal(key, shape, (2.0 / (height * width * out_channels)) ** 0.5)


def depthwise_kernel_init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """As ``conv_kernel_init`` with one output channel per group, so fan_out = height * width.

    TensorFlow keeps the multiplier (1) on the last axis of a depthwise kernel, and that is what the
    official initialiser reads; ``shape`` here is [height, width, 1, channels].
    """
    height, width = shape[:2]
    return _normal(key, shape, (2.0 / (height * width)) ** 0.5)


def dense_kernel_init(
    key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32, scale: float = 1.0
) -> jax.Array:
    """Uniform in ±scale/sqrt(classes); ``shape`` is [features, classes]."""
    bound = scale * shape[1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def small_normal_init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Normal with standard deviation 0.02: all kernels and embeddings of a DeiT.

    Its code truncates at ±2, which is 100 standard deviations away.
    """
    return _normal(key, shape, 0.02).astype(dtype)


def check_images(images: jax.Array, index: jax.Array | None = None) -> None:
    """Raises UsageError for what no network takes as [batch, height, width, 3] and [batch]."""
    if images.ndim != 4 or images.shape[-1] != 3:
        raise UsageError(
            f"images must have shape [batch, height, width, 3], got {list(images.shape)}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UsageError(f"images must be normalised floats, got dtype {images.dtype}")
    if index is not None and index.shape != images.shape[:1]:
        raise UsageError(
            f"index must have the batch's shape {list(images.shape[:1])}, got {list(index.shape)}"
        )


def uniform_by_example(key: jax.Array, index: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    """Uniform numbers in [0, 1), those of an example a function of (key, its number) alone.

    So they do not depend on which device has the example, nor on what else is there.

    Args:
        key: a JAX random key.
        index: int32 [batch], the examples' numbers.
        shape: of what is drawn for each.

    Returns:
        float32 [batch, *shape].
    """

    def draw(number: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, number), shape)

    return jax.vmap(draw)(index)


def stochastic_depth(x: jax.Array, survival_prob: float | jax.Array, draw: jax.Array) -> jax.Array:
    """Zeroes whole images of a batch with probability 1 − survival_prob and rescales the others.

    Huang et al. 2016 (arXiv 1603.09382), scaled during training as in the official code.

    Args:
        x: [batch, ...], the residual branch.
        survival_prob: in (0, 1]; may be traced.
        draw: float32 [batch], uniform in [0, 1), as ``uniform_by_example`` has it.
    """
    keep = draw.reshape(-1, *(1,) * (x.ndim - 1)) < survival_prob
    return jnp.where(keep, x / jnp.asarray(survival_prob, x.dtype), jnp.zeros_like(x))


def dropout(
    x: jax.Array, rate: float | jax.Array, key: jax.Array, index: jax.Array | None = None
) -> jax.Array:
    """Zeroes elements with probability ``rate`` and rescales the others.

    Args:
        x: [batch, ...].
        rate: in [0, 1). May be traced: it changes from stage to stage, and only a change of shape
            should compile a new program.
        key: a JAX random key.
        index: int32 [batch], the number of each image: equal numbers share a fate. None for 0 …
            batch − 1.
    """
    index = jnp.arange(x.shape[0]) if index is None else index
    keep = uniform_by_example(key, index, x.shape[1:]) < 1.0 - rate
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros_like(x))


def global_average_pool(x: jax.Array) -> jax.Array:
    """Means over the pixels: [batch, height, width, channels] → float32 [batch, channels]."""
    # By itself on CPU: XLA would hand the products before and after it to YNNPACK as well.
    return lax.platform_dependent(x, cpu=_pixel_means_on_cpu, default=_pixel_means)


def _pixel_means(x: jax.Array) -> jax.Array:
    return x.mean((1, 2), dtype=jnp.float32)


_pixel_means_on_cpu = isolated(_pixel_means)


class Conv(nnx.Module):
    """A dense convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of both spatial axes.
        stride: of both spatial axes.
        padding: one of ``convolutions.PADDINGS``.
        use_bias: adds a bias, initialised to 0.
        dtype: of the computation; the kernel [k, k, in, out] stays float32.
        rngs: gives the ``params`` key.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        padding: str = "same",
        use_bias: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.kernel = nnx.Param(conv_kernel_init(rngs.params(), shape))
        self.bias = nnx.Param(_full(out_channels, 0.0)) if use_bias else None
        self.stride = stride
        self.padding = padding
        self.dtype = dtype

    def __call__(
        self, x: jax.Array, origin: Origin | None = None, activation: str | None = None
    ) -> jax.Array:
        """Maps [batch, height, width, in] to [batch, ceil(height / stride), …, out].

        Args:
            x: the input.
            origin: of x, if it has one of this dtype.
            activation: of the result, a name in ``ACTIVATIONS``; None for none.
        """
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        x = convolutions.conv(x, kernel, self.stride, self.padding, origin)
        x = checkpoint_name(x, CONVOLUTION)
        x = x if self.bias is None else x + self.bias[...].astype(self.dtype)
        return activated(x, activation)


class DepthwiseConv(nnx.Module):
    """A depthwise convolution (multiplier 1; a bias only where batch norm is folded into it).

    Args:
        channels: of input and output.
        kernel_size: of both spatial axes.
        stride: of both spatial axes.
        padding: one of ``convolutions.PADDINGS``.
        dtype: of the computation; the kernel [k, k, 1, channels] stays float32.
        rngs: gives the ``params`` key.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        padding: str = "same",
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, kernel_size, 1, channels)
        self.kernel = nnx.Param(depthwise_kernel_init(rngs.params(), shape))
        self.bias: nnx.Param | None = None
        self.stride = stride
        self.padding = padding
        self.dtype = dtype

    def __call__(
        self, x: jax.Array, origin: Origin | None = None, activation: str | None = None
    ) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch, ceil(height / stride), …, channels].

        Args:
            x: the input.
            origin: of x, if it has one of this dtype.
            activation: of the result, a name in ``ACTIVATIONS``; None for none.
        """
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if self.bias is not None:
            bias = self.bias[...].astype(self.dtype)
            return convolutions.biased_depthwise_conv(
                x, kernel, bias, self.stride, self.padding, activation
            )
        x = convolutions.depthwise_conv(x, kernel, self.stride, self.padding, origin)
        return activated(checkpoint_name(x, CONVOLUTION), activation)


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last.

    Statistics are float32 whatever the compute dtype, and the variance is E[x²] − E[x]², the form
    that can be averaged over devices (the official ``TpuBatchNormalization``). The moving variance
    is the biased one, as there.

    Args:
        channels: size of the last axis.
        momentum: of the moving statistics.
        epsilon: added to the variance.
        axis_name: mesh axis, or axes, over whose devices the statistics of a batch are averaged;
            None keeps them local to the device.
        group_size: neighbouring devices that average theirs, at most all; None for all.
        dtype: of the output.
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
        self.scale = nnx.Param(_full(channels, 1.0))
        self.bias = nnx.Param(_full(channels, 0.0))
        self.mean = nnx.BatchStat(_full(channels, 0.0))
        self.var = nnx.BatchStat(_full(channels, 1.0))
        self.momentum = momentum
        self.epsilon = epsilon
        self.axis_name = axis_name
        self.group_size = group_size
        self.dtype = dtype
        self.use_running_average = True

    def __call__(
        self, x: jax.Array, *, train: bool | None = None, activation: str | None = None
    ) -> jax.Array:
        """Normalises x [..., channels].

        Args:
            x: the input.
            train: True uses the batch's statistics and updates the moving ones; None does what
                ``.train()`` or ``.eval()`` said last (a new module is in evaluation mode).
            activation: of the result, a name in ``ACTIVATIONS``; None for none.
        """
        return self.origin(x, train=train, activation=activation).value()

    def origin(
        self, x: jax.Array, *, train: bool | None = None, activation: str | None = None
    ) -> Origin:
        """Of what a call with the same arguments returns."""
        if train is None:
            train = not self.use_running_average
        if train:
            mean, var = self._batch_statistics(x)
            self.mean.set_value(self._moved(self.mean, mean))
            self.var.set_value(self._moved(self.var, var))
        else:
            mean, var = self.mean[...], self.var[...]
        scale = self.scale[...] * lax.rsqrt(var + self.epsilon)
        return Origin(x, scale, self.bias[...] - mean * scale, activation, self.dtype)

    def _moved(self, average: nnx.BatchStat, value: jax.Array) -> jax.Array:
        return self.momentum * average[...] + (1 - self.momentum) * value

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        axes = tuple(range(x.ndim - 1))
        x = x.astype(jnp.float32)
        mean, mean_of_squares = x.mean(axes), jnp.square(x).mean(axes)
        groups = self._groups()
        # XLA would keep the exchange with nobody, 1 for every layer, and fuse nothing across it.
        if len(groups[0]) > 1:
            # As one array, so that they travel in one message.
            together = jnp.stack([mean, mean_of_squares])
            together = lax.psum(together, self.axis_name, axis_index_groups=groups)
            mean, mean_of_squares = together / len(groups[0])
        mean, mean_of_squares = checkpoint_name((mean, mean_of_squares), BATCH_STATISTICS)
        # Rounding can push the difference of a constant channel below zero.
        return mean, jnp.maximum(mean_of_squares - jnp.square(mean), 0.0)

    def _groups(self) -> list[list[int]]:
        devices = 1 if self.axis_name is None else lax.axis_size(self.axis_name)
        return device_groups(devices, self.group_size)


def device_groups(devices: int, group_size: int | None) -> list[list[int]]:
    """The devices, by number, that average the statistics of a batch together.

    Args:
        devices: how many there are.
        group_size: neighbours in a group, at most all; None for all. The official code's is 8.

    Raises:
        UsageError: where group_size does not divide the devices.
    """
    size = devices if group_size is None else min(group_size, devices)
    if size < 1 or devices % size:
        raise UsageError(f"bn_group_size must divide the number of devices ({devices}), got {size}")
    return np.arange(devices).reshape(-1, size).tolist()


class SqueezeExcite(nnx.Module):
    """Squeeze-and-excitation (Hu et al. 2018): channels scaled by a gate computed from their means.

    Args:
        channels: of input and output.
        reduced_channels: of the bottleneck.
        activation: of the bottleneck, a name in ``ACTIVATIONS``.
        dtype: of the computation.
        rngs: gives the ``params`` keys.
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

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, channels] to the same shape."""
        return self.with_origin(x, None)[0]

    def with_origin(self, x: jax.Array, origin: Origin | None) -> tuple[jax.Array, Origin | None]:
        """The result and its origin, of an input and its own."""
        # The mean of many bfloat16 numbers needs a float32 sum.
        gate = x.mean((1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
        gate = ACTIVATIONS[self.activation](self.reduce(gate))
        gate = jax.nn.sigmoid(self.expand(gate))
        gated_origin = None if origin is None else dataclasses.replace(origin, gate=gate)
        return gated(x, gate, origin), gated_origin
