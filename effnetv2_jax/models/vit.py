"""The Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929): a peer in the comparisons.

The specs are those that EfficientNetV2's Table 7 compares with.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from effnetv2_jax.models.family import Feature, Network, dropout_rngs
from effnetv2_jax.models.initializers import small_normal_init
from effnetv2_jax.models.kernels.activations import per_channel
from effnetv2_jax.models.layers import stochastic_depth, trains, uniform_by_example
from effnetv2_jax.runtime.errors import UsageError

# Makes a dense layer from its numbers of inputs and outputs, with a block's dtype and keys.
Linear = Callable[[int, int], nnx.Linear]


@dataclasses.dataclass(frozen=True)
class VisionTransformerSpec:
    """Everything that tells one Vision Transformer from another.

    Attributes:
        name: The name, as for ``create_model``.
        patch_size: The side in px of the squares that become tokens.
        width: The number of features of a token.
        depth: The number of blocks.
        num_heads: The number of attention heads, which divides width.
        eval_size: The side of images in px, a multiple of patch_size. The position embedding has a
            row for every patch, so the network takes no other size, not even in training.
        preprocessing: The input family's name in ``effnetv2_jax.preprocessing``.
        mlp_ratio: The hidden width of a block's MLP over width.
        dropout_rate: The dropout rate before the classifier.
        survival_prob: The probability that the last block's branches survive stochastic depth; it
            falls linearly from 1.
        norm_epsilon: The epsilon of layer norm.
        in_channels: The number of channels of images.
        pooling: The pooling before the last norm and the classifier, a name in ``POOLINGS``.
    """

    name: str
    patch_size: int
    width: int
    depth: int
    num_heads: int
    eval_size: int
    preprocessing: str
    mlp_ratio: int = 4
    dropout_rate: float = 0.0
    survival_prob: float = 1.0
    norm_epsilon: float = 1e-6
    in_channels: int = 3
    pooling: str = "token"

    @property
    def train_size(self) -> int:
        """The side of training images in px, which is the evaluation size."""
        return self.eval_size


_deit = functools.partial(VisionTransformerSpec, preprocessing="deit", survival_prob=0.9)

VIT_SPECS: dict[str, VisionTransformerSpec] = {
    spec.name: spec
    for spec in (
        # Table 1 of Dosovitskiy et al. 2021, at the size that EfficientNetV2's Table 7 compares:
        # the 56 · 10⁹ multiply-adds that it gives for ViT-B/16 are those at 384 px.
        VisionTransformerSpec("vit-b-32", 32, 768, 12, 12, 384, "vit"),
        VisionTransformerSpec("vit-b-16", 16, 768, 12, 12, 384, "vit"),
        VisionTransformerSpec("vit-l-16", 16, 1024, 24, 16, 384, "vit"),
        # Table 1 of Touvron et al. 2021 (arXiv 2012.12877), without distillation: ViTs that are
        # trained with heavy augmentation. Stochastic depth is from their Table 9.
        _deit("deit-ti", 16, 192, 12, 3, 224),
        _deit("deit-s", 16, 384, 12, 6, 224),
        _deit("deit-b", 16, 768, 12, 12, 224),
        _deit("deit-b-384", 16, 768, 12, 12, 384),
    )
}


class Patches(nnx.Module):
    """A convolution whose stride is its kernel size: one token for every patch.

    Args:
        patch_size: The side of a patch in px.
        width: The number of features of a token.
        in_channels: The number of channels of images.
        dtype: The dtype of the computation. The kernel [patch_size, patch_size, in_channels, width]
            stays float32.
        rngs: The source of the ``params`` key.
    """

    def __init__(
        self,
        patch_size: int,
        width: int,
        *,
        in_channels: int = 3,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (patch_size, patch_size, in_channels, width)
        self.kernel = nnx.Param(small_normal_init(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32))
        self.dtype = dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps [batch, height, width, in_channels] to [batch, patches, width], row after row."""
        size, _, channels, width = self.kernel.shape
        batch, height, columns, _ = images.shape
        x = images.astype(self.dtype)
        x = x.reshape(batch, height // size, size, columns // size, size, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * channels)
        x = x @ self._as(self.kernel).reshape(-1, width)
        return x + per_channel(self._as(self.bias), x.ndim)

    def _as(self, parameter: nnx.Param) -> jax.Array:
        return parameter[...].astype(self.dtype)


class Embedding(nnx.Module):
    """The tokens of an image: a class token and the patches, plus the position embedding.

    Args:
        spec: The network.
        dtype: The dtype of the computation. The class token [1, 1, width] and the positions
            [1, 1 + patches, width], whose first row is the class token's, stay float32.
        rngs: The source of the ``params`` keys.
    """

    def __init__(self, spec: VisionTransformerSpec, *, dtype=jnp.float32, rngs: nnx.Rngs):
        tokens = 1 + (spec.eval_size // spec.patch_size) ** 2
        self.patches = Patches(
            spec.patch_size, spec.width, in_channels=spec.in_channels, dtype=dtype, rngs=rngs
        )
        self.class_token = nnx.Param(small_normal_init(rngs.params(), (1, 1, spec.width)))
        self.positions = nnx.Param(small_normal_init(rngs.params(), (1, tokens, spec.width)))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps [batch, eval_size, eval_size, in_channels] to [batch, 1 + patches, width]."""
        x = self.patches(images)
        start = jnp.broadcast_to(
            self.class_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1])
        )
        return jnp.concatenate([start, x], axis=1) + self.positions[...].astype(x.dtype)


class Attention(nnx.Module):
    """Self-attention with several heads.

    Args:
        width: The number of features of a token.
        num_heads: The number of heads; each sees width / num_heads features of a token.
        linear: Makes a dense layer from its numbers of inputs and outputs.
    """

    def __init__(self, width: int, num_heads: int, *, linear: Linear):
        self.num_heads = num_heads
        # One product for the queries, keys and values, in this order, each head after head.
        self.qkv = linear(width, 3 * width)
        self.project = linear(width, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, tokens, width] to the same shape."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        # Scores can be large, and bfloat16 has only 8 bits: they and the softmax are float32.
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        attention = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1).astype(x.dtype)
        return self.project(jnp.einsum("bhqk,bkhd->bqhd", attention, v).reshape(x.shape))


class MLP(nnx.Module):
    """Two dense layers with a GELU in between, applied to each token.

    Args:
        width: The number of features of a token.
        inside: The number of features between the two layers.
        linear: Makes a dense layer from its numbers of inputs and outputs.
    """

    def __init__(self, width: int, inside: int, *, linear: Linear):
        self.expand = linear(width, inside)
        self.project = linear(inside, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, tokens, width] to the same shape."""
        # The published networks were trained with erf, not with GELU's approximation by tanh.
        return self.project(jax.nn.gelu(self.expand(x), approximate=False))


class TransformerBlock(nnx.Module):
    """Attention and an MLP; each has a layer norm before it and a skip around both.

    Args:
        spec: The network.
        survival_prob: The probability that each of the two branches survives in training.
        linear: Makes a dense layer from its numbers of inputs and outputs.
        norm: Makes a layer norm.
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
        self.deterministic = True

    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool | None = None,
        rngs: nnx.Rngs,
        index: jax.Array | None = None,
    ) -> jax.Array:
        """Maps [batch, tokens, width] to the same shape.

        Args:
            x: The input.
            train: True uses stochastic depth. None does what ``.train()`` or ``.eval()`` said last.
            rngs: The source of the ``dropout`` keys, which training with survival_prob < 1 needs.
            index: int32 [batch], the number of each image. None means 0 … batch − 1.
        """
        training = not self.deterministic if train is None else train
        pairs = (self.attention_norm, self.attention), (self.mlp_norm, self.mlp)
        for norm, branch in pairs:
            y = branch(norm(x))
            if training and self.survival_prob < 1.0:
                numbers = jnp.arange(x.shape[0]) if index is None else index
                draw = uniform_by_example(rngs.dropout(), numbers)
                y = stochastic_depth(y, self.survival_prob, draw)
            x = x + y
        return x


POOLINGS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "token": lambda x: x[:, 0],
    "avg": lambda x: x[:, 1:].mean(1, dtype=jnp.float32).astype(x.dtype),
    "max": lambda x: x[:, 1:].max(1),
    "avgmax": lambda x: (POOLINGS["avg"](x) + POOLINGS["max"](x)) / 2,
    "none": lambda x: x,
}
"""Names of poolings, as in timm: [batch, width] from the tokens [batch, 1 + patches, width].

``token`` is the class token, ``avg`` and ``max`` are of the patches, ``avgmax`` is the mean of the
two, and ``none`` keeps all tokens, each of which is classified.
"""


class VisionTransformer(Network):
    """ViT and DeiT, called as an EfficientNet is.

    Parameters are float32. A new model is in evaluation mode: ``model(images)`` uses no stochastic
    depth and no dropout until ``.train()`` is called or ``train=True`` is given. It has no batch
    statistics.

    Args:
        spec: The network.
        num_classes: The number of classes; 0 leaves out the classifier, and the model returns
            pooled tokens.
        dtype: The dtype of the computation, as for ``create_model``.
        remat: A name in ``family.REMAT``. ``stages`` recomputes blocks: anything coarser would need
            the inside of several blocks at once.
        rngs: The source of the ``params`` keys, and of the ``dropout`` key that training uses if a
            call gives none.
    """

    poolings = POOLINGS

    def __init__(
        self,
        spec: VisionTransformerSpec,
        *,
        num_classes: int = 1000,
        dtype=jnp.float32,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        super().__init__(spec, num_classes, remat)
        self.dtype = dtype
        if spec.eval_size < 1 or spec.eval_size % spec.patch_size:
            raise UsageError(
                f"eval_size of {spec.name} must be a multiple of its patches' {spec.patch_size} "
                f"px, got {spec.eval_size}"
            )
        if spec.width % spec.num_heads:
            raise UsageError(
                f"num_heads of {spec.name} must divide its width {spec.width}, got {spec.num_heads}"
            )
        linear = self._linear(rngs)
        norm = functools.partial(
            nnx.LayerNorm,
            spec.width,
            epsilon=spec.norm_epsilon,
            # PyTorch's variance is the mean of squared differences. E[x²] − E[x]² loses digits, and
            # its use, averaging over devices, is not needed here.
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
        self.classifier = self.new_classifier(num_classes, rngs) if num_classes else None
        self.rngs = dropout_rngs(rngs)

    def _linear(self, rngs: nnx.Rngs) -> Linear:
        return functools.partial(
            nnx.Linear, kernel_init=small_normal_init, dtype=self.dtype, rngs=rngs
        )

    def new_classifier(self, num_classes: int, rngs: nnx.Rngs) -> nnx.Linear:
        return self._linear(rngs)(self.spec.width, num_classes)

    @property
    def feature_info(self) -> tuple[Feature, ...]:
        return tuple(
            Feature(f"block_{number}", self.spec.width, self.spec.patch_size)
            for number in range(1, self.spec.depth + 1)
        )

    def maps(
        self,
        images: jax.Array,
        train: bool | None,
        rngs: nnx.Rngs,
        index: jax.Array | None,
        count: int,
    ) -> list[jax.Array]:
        grid = self.spec.eval_size // self.spec.patch_size
        return [
            x[:, 1:].reshape(-1, grid, grid, self.spec.width)
            for x in self._tokens(images, train, rngs, index, count)
        ]

    def pooled(
        self, images: jax.Array, train: bool | None, rngs: nnx.Rngs, index: jax.Array | None
    ) -> jax.Array:
        tokens = self._tokens(images, train, rngs, index, self.spec.depth)[-1]
        return self.norm(self.poolings[self.spec.pooling](tokens)).astype(jnp.float32)

    def _tokens(
        self,
        images: jax.Array,
        train: bool | None,
        rngs: nnx.Rngs,
        index: jax.Array | None,
        count: int,
    ) -> list[jax.Array]:
        """Returns the tokens [batch, 1 + patches, width] after each of the first blocks."""
        height, width = images.shape[1:3]
        size = self.spec.eval_size
        if (height, width) != (size, size):
            raise UsageError(
                f"{self.spec.name} takes images of {size} × {size} px, as it was made with "
                f"eval_size={size}, got {height} × {width}"
            )

        def run(
            block: TransformerBlock, x: jax.Array, rngs: nnx.Rngs, index: jax.Array | None
        ) -> jax.Array:
            return block(x, train=train, rngs=rngs, index=index)

        if self.remat != "none" and trains(self.blocks, train):
            run = nnx.remat(run)
        tokens = [self.embed(images)]
        for block in self.blocks[:count]:
            tokens.append(run(block, tokens[-1], rngs, index))
        return tokens[1:]
