"""The Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929): a peer in the comparisons."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from effnetv2_jax.models.initializers import small_normal_init
from effnetv2_jax.models.layers import (
    AxisName,
    check_images,
    dropout,
    stochastic_depth,
    uniform_by_example,
)
from effnetv2_jax.models.vit_specs import VisionTransformerSpec
from effnetv2_jax.runtime.errors import UsageError, unknown_name

# What a block's parts, which share width and dtype, are made with.
Linear = Callable[[int, int], nnx.Linear]


class Patches(nnx.Module):
    """A convolution whose stride is its kernel size: one token for every patch.

    Args:
        patch_size: side in px.
        width: of a token.
        dtype: of the computation; the kernel [patch_size, patch_size, 3, width] stays float32.
        rngs: gives the ``params`` key.
    """

    def __init__(self, patch_size: int, width: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        shape = (patch_size, patch_size, 3, width)
        self.kernel = nnx.Param(small_normal_init(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(width))
        self.dtype = dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps [batch, height, width, 3] to [batch, patches, width], row after row of patches."""
        size, _, _, width = self.kernel.shape
        batch, height, columns, _ = images.shape
        x = images.astype(self.dtype).reshape(batch, height // size, size, columns // size, size, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * 3)
        return x @ self._as(self.kernel).reshape(-1, width) + self._as(self.bias)

    def _as(self, parameter: nnx.Param) -> jax.Array:
        return parameter[...].astype(self.dtype)


class Embedding(nnx.Module):
    """From an image to tokens: its patches with a class token before them, and where each lies.

    Args:
        spec: of the network.
        dtype: of the computation; the class token [1, 1, width] and the positions
            [1, 1 + patches, width], of which the first is the class token's, stay float32.
        rngs: gives the ``params`` keys.
    """

    def __init__(self, spec: VisionTransformerSpec, *, dtype=jnp.float32, rngs: nnx.Rngs):
        tokens = 1 + spec.grid**2
        self.patches = Patches(spec.patch_size, spec.width, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(small_normal_init(rngs.params(), (1, 1, spec.width)))
        self.positions = nnx.Param(small_normal_init(rngs.params(), (1, tokens, spec.width)))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps [batch, eval_size, eval_size, 3] to [batch, 1 + patches, width]."""
        x = self.patches(images)
        start = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
        return jnp.concatenate([start, x], axis=1) + self.positions[...].astype(x.dtype)


class Attention(nnx.Module):
    """Self-attention with several heads.

    Args:
        width: of a token.
        num_heads: each sees width / num_heads numbers of a token.
        linear: makes a dense layer from its inputs and outputs.
    """

    def __init__(self, width: int, num_heads: int, *, linear: Linear):
        self.num_heads = num_heads
        # Queries, keys and values of all heads as one product; in that order, head after head.
        self.qkv = linear(width, 3 * width)
        self.project = linear(width, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, tokens, width] to the same shape."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        # Scores and their exponentials in float32: bfloat16 has 8 bits for what may be large.
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        attention = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1).astype(x.dtype)
        return self.project(jnp.einsum("bhqk,bkhd->bqhd", attention, v).reshape(x.shape))


class MLP(nnx.Module):
    """Two dense layers with a GELU in between, of every token alone.

    Args:
        width: of a token.
        inside: width between the two.
        linear: makes a dense layer from its inputs and outputs.
    """

    def __init__(self, width: int, inside: int, *, linear: Linear):
        self.expand = linear(width, inside)
        self.project = linear(inside, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, tokens, width] to the same shape."""
        # Not its approximation by tanh: the published networks were trained with erf.
        return self.project(jax.nn.gelu(self.expand(x), approximate=False))


class TransformerBlock(nnx.Module):
    """Attention and an MLP, each with a layer norm before it and a skip around both.

    Args:
        spec: of the network.
        survival_prob: of each of the two branches in training.
        linear: makes a dense layer from its inputs and outputs.
        norm: makes a layer norm.
    """

    def __init__(
        self,
        spec: VisionTransformerSpec,
        *,
        survival_prob: float,
        linear: Linear,
        norm: Callable[[], nnx.LayerNorm],
    ):
        self.attention_norm = norm()
        self.attention = Attention(spec.width, spec.num_heads, linear=linear)
        self.mlp_norm = norm()
        self.mlp = MLP(spec.width, spec.width * spec.mlp_ratio, linear=linear)
        self.survival_prob = survival_prob

    def __call__(
        self, x: jax.Array, *, training: bool, rngs: nnx.Rngs, index: jax.Array | None = None
    ) -> jax.Array:
        """Maps [batch, tokens, width] to the same shape.

        Args:
            x: the input.
            training: switches stochastic depth on.
            rngs: gives the ``dropout`` keys, in training where survival_prob < 1.
            index: int32 [batch], the number of each image. None for 0 … batch − 1.
        """
        for norm, branch in (
            (self.attention_norm, self.attention),
            (self.mlp_norm, self.mlp),
        ):
            y = branch(norm(x))
            if training and self.survival_prob < 1.0:
                numbers = jnp.arange(len(x)) if index is None else index
                draw = uniform_by_example(rngs.dropout(), numbers)
                y = stochastic_depth(y, self.survival_prob, draw)
            x = x + y
        return x


REMAT = {"none": False, "blocks": True, "stages": True}
"""Whether blocks are computed anew in the backward pass, by the names that an EfficientNet knows.

A transformer has no stages. It keeps the input of every block, as anything coarser would need all
that is inside of several blocks at once.
"""


class VisionTransformer(nnx.Module):
    """ViT and DeiT, as their spec says; called as an EfficientNet is.

    Parameters are float32. A new model is in evaluation mode: ``model(images)`` uses no stochastic
    depth and no dropout until ``.train()`` is called or ``train=True`` is given. It has no batch
    statistics.

    Args:
        spec: the network.
        num_classes: of the classifier; 0 leaves it out, and the model returns the class token.
        dtype: of the computation, float32 or bfloat16.
        axis_name: of no meaning here, as there is no batch norm.
        bn_group_size: likewise.
        remat: a name in ``REMAT``: what training computes anew in the backward pass, and does not
            keep in memory.
        rngs: gives the ``params`` keys and the ``dropout`` key that training falls back on.
    """

    def __init__(
        self,
        spec: VisionTransformerSpec,
        *,
        num_classes: int = 1000,
        dtype=jnp.float32,
        axis_name: AxisName | None = None,
        bn_group_size: int | None = None,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        del axis_name, bn_group_size
        if num_classes < 0:
            raise UsageError(f"num_classes must be 0 (the class token) or more, got {num_classes}")
        if spec.eval_size < 1 or spec.eval_size % spec.patch_size:
            raise UsageError(
                f"eval_size of {spec.name} must be a multiple of its patches' {spec.patch_size} "
                f"px, got {spec.eval_size}"
            )
        if spec.width % spec.num_heads:
            raise UsageError(
                f"num_heads of {spec.name} must divide its width {spec.width}, got {spec.num_heads}"
            )
        if remat not in REMAT:
            raise unknown_name("remat", remat, REMAT)
        self.spec = spec
        self.deterministic = True
        self.remat = REMAT[remat]
        linear = functools.partial(
            nnx.Linear, kernel_init=small_normal_init, dtype=dtype, rngs=rngs
        )
        norm = functools.partial(
            nnx.LayerNorm,
            spec.width,
            epsilon=spec.norm_epsilon,
            # The variance as the mean of squared differences, as in PyTorch: E[x²] − E[x]² loses
            # digits, and averages over no devices here.
            use_fast_variance=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.embed = Embedding(spec, dtype=dtype, rngs=rngs)
        last = max(1, spec.depth - 1)
        self.blocks = nnx.List(
            [
                TransformerBlock(
                    spec,
                    survival_prob=1.0 - (1.0 - spec.survival_prob) * i / last,
                    linear=linear,
                    norm=norm,
                )
                for i in range(spec.depth)
            ]
        )
        self.norm = norm()
        self.classifier = linear(spec.width, num_classes) if num_classes else None
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
            images: float [batch, eval_size, eval_size, 3], normalised as ``spec.preprocessing``
                says.
            train: True uses stochastic depth and dropout; None does what ``.train()`` or
                ``.eval()`` said last.
            rngs: gives the ``dropout`` key in training; None takes the model's own.
            dropout_rate: before the classifier, may be traced; None takes the spec's.
            index: int32 [batch], the number of each image, of which stochastic depth and dropout
                are a function, with the key. None for 0 … batch − 1.

        Returns:
            float32 logits [batch, num_classes], or the float32 class token [batch, width] where
            num_classes is 0.

        Raises:
            UsageError: for images of another size, as positions have been learnt for one.
        """
        check_images(images, index)
        height, width = images.shape[1:3]
        size = self.spec.eval_size
        if (height, width) != (size, size):
            raise UsageError(
                f"{self.spec.name} takes images of {size} × {size} px, as it was made with "
                f"eval_size={size}, got {height} × {width}"
            )
        training = not self.deterministic if train is None else train
        rngs = self.rngs if rngs is None else rngs

        def run(
            block: TransformerBlock, x: jax.Array, rngs: nnx.Rngs, index: jax.Array | None
        ) -> jax.Array:
            return block(x, training=training, rngs=rngs, index=index)

        if training and self.remat:
            run = nnx.remat(run)
        x = self.embed(images)
        for block in self.blocks:
            x = run(block, x, rngs, index)
        # Of the class token alone: nothing else is looked at from here on.
        x = self.norm(x[:, 0]).astype(jnp.float32)
        if self.classifier is None:
            return x
        rate = self.spec.dropout_rate if dropout_rate is None else dropout_rate
        if training:
            x = dropout(x, rate, rngs.dropout(), index)
        return self.classifier(x).astype(jnp.float32)
