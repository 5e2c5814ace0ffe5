"""Why a published count is not ours, for the few where it is not."""

from collections.abc import Mapping

_EARLY_S = (
    "an early S, whose last stages have 272 and 1792 filters, as the paper's text once had it: by "
    "our count 23.9 M and 8.6 B; the released S is ours, and printed as 21.5 M and 8.4 B"
)
_FUSED = (
    "the paper does not define its fused blocks; with the replaced block's kernel and without SE, "
    "as here, parameters are 20.9, 43.5 and 132.1 M, with 3 × 3 kernels and SE 20.0, 29.7 and "
    "68.6 M with 7.3, 12.9 and 18.5 B, and no other way we tried gives all of its figures"
)

FOOTNOTES: Mapping[tuple[str, str, float], str] = {
    ("efficientnetv2-s", "parameters", 22): "the official repository prints 21.5",
    ("efficientnetv2-s", "parameters", 24): _EARLY_S,
    ("efficientnetv2-s", "FLOPs", 8.8): _EARLY_S,
    ("efficientnetv2-m", "parameters", 55): "Table 7 has 54 for the same network",
    ("efficientnetv2-l", "parameters", 120): (
        "the official repository prints 119.5, and its code builds 118,515,272"
    ),
    ("efficientnetv2-l", "FLOPs", 53): "the official repository prints 56.3",
    ("efficientnetv2-b0", "parameters", 7.4): (
        "the official repository prints 7.1, and its code builds 7,139,704"
    ),
    ("efficientnet-b3", "FLOPs", 1.9): "EfficientNet's own paper prints 1.8",
    ("efficientnet-b4", "FLOPs", 4.2): (
        "EfficientNet's own paper prints 4.2 as well, Table 3 of this one 4.5 for the same network"
    ),
    ("efficientnet-b5", "FLOPs", 9.9): "Table 7 has 10 for the same network",
    ("efficientnet-b4-fused-1-3", "parameters", 20.0): _FUSED,
    ("efficientnet-b4-fused-1-3", "FLOPs", 7.5): _FUSED,
    ("efficientnet-b4-fused-1-5", "FLOPs", 21.3): _FUSED,
    ("efficientnet-b4-fused-1-7", "FLOPs", 34.4): _FUSED,
}
"""By model, column and the published figure."""
