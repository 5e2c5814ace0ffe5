"""The frozen table of Vision Transformers: those that the paper's Table 7 compares with."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class VisionTransformerSpec:
    """Everything that tells one Vision Transformer from another.

    Attributes:
        name: as in ``create_model``.
        patch_size: side in px of the squares that become tokens.
        width: of a token.
        depth: number of blocks.
        num_heads: of attention; divides width.
        eval_size: side of images in px, a multiple of patch_size. A position embedding has a row
            for every patch, so that the network takes no other size, in training neither.
        preprocessing: name of the input's family in ``effnetv2_jax.preprocessing``.
        mlp_ratio: width inside of a block's MLP over width.
        dropout_rate: before the classifier.
        survival_prob: of the last block's branches in stochastic depth; falls linearly from 1.
        norm_epsilon: of layer norm.
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

    @property
    def train_size(self) -> int:
        """Side of training images in px: the same as in evaluation."""
        return self.eval_size

    @property
    def num_features(self) -> int:
        """Of the class token, that the classifier sees."""
        return self.width

    @property
    def grid(self) -> int:
        """Patches along a side of the image."""
        return self.eval_size // self.patch_size


def _vit(
    size: str, patch_size: int, width: int, depth: int, num_heads: int
) -> VisionTransformerSpec:
    """Dosovitskiy et al. 2021 (arXiv 2010.11929), Table 1; 384 px, as the paper's Table 7 has it.

    Its multiply-adds say so: 56 · 10⁹ of ViT-B/16 are those at 384 px.
    """
    return VisionTransformerSpec(
        name=f"vit-{size}-{patch_size}",
        patch_size=patch_size,
        width=width,
        depth=depth,
        num_heads=num_heads,
        eval_size=384,
        preprocessing="vit",
    )


def _deit(name: str, width: int, num_heads: int, eval_size: int = 224) -> VisionTransformerSpec:
    """Touvron et al. 2021 (arXiv 2012.12877), without distillation: ViTs with heavy augmentation.

    Their Table 1; stochastic depth as in their Table 9.
    """
    return VisionTransformerSpec(
        name=name,
        patch_size=16,
        width=width,
        depth=12,
        num_heads=num_heads,
        eval_size=eval_size,
        preprocessing="deit",
        survival_prob=0.9,
    )


VIT_SPECS: dict[str, VisionTransformerSpec] = {
    spec.name: spec
    for spec in (
        _vit("b", 32, 768, 12, 12),
        _vit("b", 16, 768, 12, 12),
        _vit("l", 16, 1024, 24, 16),
        _deit("deit-ti", 192, 3),
        _deit("deit-s", 384, 6),
        _deit("deit-b", 768, 12),
        _deit("deit-b-384", 768, 12, 384),
    )
}
