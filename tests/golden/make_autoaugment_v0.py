"""Writes autoaugment_v0.json: the policy as timm 1.0.31 has it, which is compared with ours.

``python tests/golden/make_autoaugment_v0.py``, with ``pip install torch`` and
``pip install --no-deps timm torchvision pyyaml safetensors huggingface_hub``; no test runs it.
"""

import json
import pathlib

import torch

# torchvision's compiled operations may not load beside a torch built for the CPU; nothing here
# calls them, but importing torchvision asks for their schemas.
_LIBRARY = torch.library.Library("torchvision", "DEF")
_DETECTION = (
    "nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d",
)  # fmt: skip
for _name in (*_DETECTION, *(f"_{name}_backward" for name in _DETECTION)):
    try:
        getattr(torch.ops.torchvision, _name)
    except AttributeError:
        _LIBRARY.define(f"{_name}(Tensor a) -> Tensor")

import timm  # noqa: E402
from timm.data.auto_augment import auto_augment_policy_v0  # noqa: E402

# timm's names for what it does a little differently: a translation relative to the image's size,
# and the posterisation of the TPU code.
NAMES = {"TranslateYRel": "TranslateY", "PosterizeTpu": "Posterize"}

policy = auto_augment_policy_v0({"translate_const": 250, "img_mean": (128, 128, 128)})
rows = [
    [[NAMES.get(op.name, op.name), op.prob, op.magnitude] for op in sub_policy]
    for sub_policy in policy
]
path = pathlib.Path(__file__).with_name("autoaugment_v0.json")
path.write_text(json.dumps({"timm": timm.__version__, "policy": rows}, indent=1) + "\n")
