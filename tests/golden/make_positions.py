"""Writes positions.npz: a DeiT's position embedding as timm resizes it for other image sizes.

No test runs it. From the repository's root, in an environment with torch:

    python -m tests.golden.make_positions

Made with torch 2.13.0, timm 1.0.31 and NumPy 2.4.6. Of ``drawn``'s weights for
``deit_small_patch16_224``, loaded by timm into networks for SIZE px:

    SIZE/positions    float32 [tokens, 16], of the embedding's first 16 numbers of every token
    SIZE/logits       float32 [1, 1000], of ``drawn.image(SIZE, SIZE)``, computed in float64
"""

import pathlib

import numpy as np

from tests.golden.drawn import draw, image
from tests.golden.make_logits import import_timm

PATH = pathlib.Path(__file__).with_name("positions.npz")
NETWORK = "deit_small_patch16_224"
# More and fewer patches: bicubic interpolation, and with antialiasing.
SIZES = (384, 128)
CHANNELS = 16


def main() -> None:
    torch, timm, _ = import_timm()
    from timm.models.vision_transformer import checkpoint_filter_fn

    arrays = {}
    shapes = {name: x.shape for name, x in timm.create_model(NETWORK).state_dict().items()}
    for size in SIZES:
        model = timm.create_model(NETWORK, img_size=size).eval()
        weights = {name: torch.from_numpy(draw(name, tuple(x))) for name, x in shapes.items()}
        model.load_state_dict(checkpoint_filter_fn(weights, model))
        arrays[f"{size}/positions"] = model.pos_embed[0, :, :CHANNELS].detach().numpy()
        x = torch.from_numpy(image(size, size).transpose(0, 3, 1, 2).copy())
        with torch.inference_mode():
            logits = model.double()(x.double()).numpy()
        arrays[f"{size}/logits"] = logits.astype(np.float32)
        print(f"{size} px: {len(arrays[f'{size}/positions'])} tokens, std {logits.std():.3f}")
    np.savez_compressed(PATH, **arrays)


if __name__ == "__main__":
    main()
