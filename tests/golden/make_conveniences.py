"""Writes conveniences.npz: what timm computes with its further arguments, on small networks.

No test runs it. From the repository's root, in an environment with torch and timm:

    python -m tests.golden.make_conveniences

Made with timm 1.0.31 and torch 2.13.0. Weights and images are ``drawn``'s; results are computed in
float64 and written as float32, channels last:

    PADDING/STRIDE/N       the feature map of level N at an output stride
    PADDING/STRIDE/logits  the logits there
    pooling/NAME, vit/NAME logits with a pooling; without a classifier for "none"
    vit/N                  the feature map after block N
    kernel/CHANNELS        a kernel for RGB as timm adapts it, [height, width, channels, out]
    feature_info           text, "NAME STRIDE CHANNELS/REDUCTION …" of timm's published networks
"""

import functools
import pathlib

import numpy as np

from tests.golden.drawn import draw, image
from tests.golden.make_logits import import_timm

PATH = pathlib.Path(__file__).with_name("conveniences.npz")
NUM_CLASSES = 7
# Every kind of block, with and without a stride that dilation can replace.
BLOCKS = (
    ["cn_r1_k3_s1_e1_c8_skip"],
    ["er_r2_k3_s2_e4_c16"],
    ["ir_r1_k5_s2_e4_c16_se0.25"],
    ["er_r2_k3_s2_e2_c24"],
    ["ir_r3_k5_s2_e2_c32_se0.25"],
)
STEM, HEAD = 8, 64
SIZE = (56, 41)
# Our names of paddings: timm's, and the epsilon that goes with it.
PADDINGS = {"same": ("same", 1e-3), "symmetric": ("", 1e-5)}
CASES = (("same", 8), ("symmetric", 8), ("same", 16))
LEVELS = (3, 4, 5)
POOLINGS = {"max": "max", "avgmax": "avgmax", "none": ""}
VIT = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "img_size": 32}
VIT_POOLINGS = {"token": "token", "avg": "avg", **POOLINGS}
CHANNELS = (1, 2, 3, 4, 6, 8)
PUBLISHED = ("tf_efficientnetv2_b0", "tf_efficientnetv2_m", "tf_efficientnet_lite0")


def main() -> None:
    torch, timm, _ = import_timm()
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models._manipulate import adapt_input_conv
    from timm.models.efficientnet import EfficientNet
    from timm.models.vision_transformer import VisionTransformer

    arrays: dict[str, np.ndarray] = {}

    def fill(model):
        weights = {
            # timm calls the norm otherwise if it is after the pooling.
            name: torch.from_numpy(draw(name.replace("fc_norm", "norm"), tuple(x.shape)))
            for name, x in model.state_dict().items()
        }
        model.load_state_dict(weights)
        return model.eval().double()

    def efficientnet(padding="same", **arguments):
        pad_type, epsilon = PADDINGS[padding]
        arguments = {"num_classes": NUM_CLASSES, **arguments}
        model = EfficientNet(
            decode_arch_def([list(blocks) for blocks in BLOCKS]),
            num_features=HEAD,
            stem_size=STEM,
            fix_stem=True,
            pad_type=pad_type,
            act_layer=torch.nn.SiLU,
            norm_layer=functools.partial(torch.nn.BatchNorm2d, eps=epsilon),
            **arguments,
        )
        return fill(model)

    def tensor(picture):
        return torch.from_numpy(picture.transpose(0, 3, 1, 2).copy()).double()

    def keep(name, x):
        x = x.detach().numpy().astype(np.float32)
        arrays[name] = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x

    pictures = tensor(image(*SIZE))
    for padding, stride in CASES:
        model = efficientnet(padding, output_stride=stride)
        maps = model.forward_intermediates(pictures, intermediates_only=True)
        for level in LEVELS:
            keep(f"{padding}/{stride}/{level}", maps[level - 1])
        keep(f"{padding}/{stride}/logits", model(pictures))
    for name, pooling in POOLINGS.items():
        classes = NUM_CLASSES if pooling else 0
        model = efficientnet(global_pool=pooling, num_classes=classes)
        keep(f"pooling/{name}", model(pictures))
    pictures = tensor(image(VIT["img_size"], VIT["img_size"]))
    for name, pooling in VIT_POOLINGS.items():
        classes = NUM_CLASSES if pooling else 0
        model = fill(VisionTransformer(**VIT, num_classes=classes, global_pool=pooling))
        keep(f"vit/{name}", model(pictures))
    for level, x in enumerate(model.forward_intermediates(pictures, intermediates_only=True), 1):
        keep(f"vit/{level}", x)
    kernel = torch.from_numpy(draw("conv_stem.weight", (4, 3, 3, 3)))
    for channels in CHANNELS:
        adapted = adapt_input_conv(channels, kernel.clone()).numpy()
        arrays[f"kernel/{channels}"] = adapted.transpose(2, 3, 1, 0)
    lines = []
    for name in PUBLISHED:
        for stride in (8, 16, 32):
            with torch.device("meta"):
                info = timm.create_model(name, output_stride=stride).feature_info
            maps = " ".join(f"{x['num_chs']}/{x['reduction']}" for x in info)
            lines.append(f"{name} {stride} {maps}")
    arrays["feature_info"] = np.array(lines)
    np.savez_compressed(PATH, **dict(sorted(arrays.items())))


if __name__ == "__main__":
    main()
