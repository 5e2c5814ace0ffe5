"""Writes logits.npz: the logits of other people's networks for ``drawn``'s weights and image.

No test runs it. From the repository's root, in an environment with torch and in one with Keras:

    python -m tests.golden.make_logits --library=torch
    python -m tests.golden.make_logits --library=keras

Made with torch 2.13.0, timm 1.0.31, torchvision 0.28.0; Keras 3.15.1 on TensorFlow 2.21.0; NumPy
2.4.6. Logits are computed in float64, and those of float32 are printed for comparison.
"""

import argparse
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from tests.golden.drawn import digest, draw, image

PATH = pathlib.Path(__file__).with_name("logits.npz")
TIMM = (
    "tf_efficientnetv2_b0",
    "tf_efficientnetv2_s",
    "tf_efficientnetv2_l",
    "tf_efficientnet_b0",
    "tf_efficientnet_b4",
    "tf_efficientnet_lite0",
    "efficientnet_b0",
    "efficientnetv2_rw_t",
)
# With the side in px of the images that they take.
TIMM_VIT = {"deit_small_patch16_224": 224, "vit_base_patch32_384": 384}
TORCHVISION = ("efficientnet_v2_s", "efficientnet_b0", "efficientnet_b5")
KERAS = ("EfficientNetV2B0", "EfficientNetV2S", "EfficientNetB0")


class Case(NamedTuple):
    """A network filled with drawn weights.

    Attributes:
        key: The key ``<library>/<model>``.
        shapes: The shapes of its tensors by name.
        logits: The logits, computed in float64.
        logits_32: The logits, computed in float32.
    """

    key: str
    shapes: dict[str, tuple[int, ...]]
    logits: np.ndarray
    logits_32: np.ndarray


def import_timm():
    """Imports torch, timm and torchvision, even if torchvision was built for another torch."""
    import torch

    torch.set_num_threads(1)
    # torchvision's compiled operations may not load beside a torch built for the CPU; nothing here
    # calls them, but importing torchvision asks for their schemas.
    library = torch.library.Library("torchvision", "DEF")
    detection = (
        "nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d",
    )  # fmt: skip
    for name in (*detection, *(f"_{name}_backward" for name in detection)):
        try:
            getattr(torch.ops.torchvision, name)
        except AttributeError:
            library.define(f"{name}(Tensor a) -> Tensor")
    import timm
    import torchvision

    return torch, timm, torchvision


def torch_cases() -> Iterator[Case]:
    torch, timm, torchvision = import_timm()

    def case(key: str, model, picture: np.ndarray) -> Case:
        x = torch.from_numpy(picture.transpose(0, 3, 1, 2).copy())
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        weights = {name: torch.from_numpy(draw(name, shape)) for name, shape in shapes.items()}
        model.load_state_dict(weights)
        model.eval()
        with torch.inference_mode():
            logits_32 = model(x).numpy()
            logits = model.double()(x.double()).numpy()
        return Case(key, shapes, logits, logits_32)

    for name in TIMM:
        yield case(f"timm/{name}", timm.create_model(name, pretrained=False), image())
    for name, size in TIMM_VIT.items():
        model = timm.create_model(name, pretrained=False)
        yield case(f"timm/{name}", model, image(size, size))
    for name in TORCHVISION:
        model = getattr(torchvision.models, name)(weights=None)
        yield case(f"torchvision/{name}", model, image())


def keras_cases() -> Iterator[Case]:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    # Keras says so of every call of a model with an input tensor of its own.
    warnings.filterwarnings("ignore", "The structure of `inputs`", UserWarning)

    def logits(name: str, dtype: str) -> tuple[dict[str, tuple[int, ...]], np.ndarray]:
        keras.config.set_dtype_policy(dtype)
        options = {"weights": None, "classes": 1000, "classifier_activation": None}
        if "V2" in name:
            options["include_preprocessing"] = False
        # V1 pads by the size that it is built for, and wrongly for odd sizes where that is open.
        x = keras.Input(image().shape[1:], dtype=dtype)
        model = getattr(keras.applications, name)(input_tensor=x, **options)
        if "V2" not in name:
            # From the padding before the stem on: preprocessing is always in front.
            model = keras.Model(model.get_layer("stem_conv_pad").input, model.output)
        shapes = {}
        for layer in model.layers:
            for weight in layer.weights:
                weight_name = f"{layer.name}/{weight.path.rsplit('/', 1)[1]}"
                assert weight_name not in shapes, weight_name
                assert weight.dtype == dtype, weight.dtype
                shapes[weight_name] = tuple(weight.shape)
                weight.assign(draw(weight_name, shapes[weight_name]))
        return shapes, np.asarray(model(image().astype(dtype), training=False))

    for name in KERAS:
        _, logits_32 = logits(name, "float32")
        yield Case(f"keras/{name}", *logits(name, "float64"), logits_32)


LIBRARIES: dict[str, tuple[Callable[[], Iterator[Case]], tuple[str, ...]]] = {
    "torch": (torch_cases, ("timm/", "torchvision/")),
    "keras": (keras_cases, ("keras/",)),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", choices=LIBRARIES, required=True)
    cases, prefixes = LIBRARIES[parser.parse_args().library]
    arrays = {}
    if PATH.exists():
        with np.load(PATH) as old:
            arrays = {key: old[key] for key in old.files if not key.startswith(prefixes)}
    for case in cases():
        assert case.logits.dtype == np.float64 and case.logits_32.dtype == np.float32, case.key
        assert case.logits.shape == (1, 1000), case.key
        error = np.abs(case.logits_32 - case.logits).max() / np.abs(case.logits).max()
        print(f"{case.key:32} std {case.logits.std():6.3f}, float32 is off by {error:.1e}")
        assert 0.1 < case.logits.std() < 10 and error < 1e-5, case.key
        arrays[case.key] = case.logits.astype(np.float32)
        arrays[f"{case.key}/names"] = np.array(digest(case.shapes))
    np.savez_compressed(PATH, **dict(sorted(arrays.items())))


if __name__ == "__main__":
    main()
