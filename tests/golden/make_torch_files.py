"""Writes small files with torch.save, for a reader that has no torch, and their content.

No test runs it. From the repository's root, in an environment with torch:

    python -m tests.golden.make_torch_files

Made with torch 2.13.0 and NumPy 2.4.6.

    torch_zip.pth      a state dict in today's format, a ZIP file
    torch_legacy.pth   the same in the format before torch 1.6, a row of pickles; it differs from
                       run to run, as storages are named by their addresses
    torch_nested.pth   a training checkpoint around it, in today's format
    torch_files.npz    the tensors by name; bfloat16, which NumPy lacks, as float32
"""

import collections
import pathlib

import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parent


def state_dict() -> collections.OrderedDict[str, torch.Tensor]:
    """Every way in which a tensor may lie in its storage, and every type that weights have."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    shared = normal(11)
    state = collections.OrderedDict(
        {
            "contiguous": normal(3, 4),
            "transposed": normal(3, 4).t(),
            # Parts of one storage. The third skips numbers.
            "shared.first": shared[:4],
            "shared.second": shared[4:10].view(2, 3),
            "shared.strided": shared[1::3],
            "float64": normal(3).double(),
            "float16": normal(2, 3).half(),
            "bfloat16": normal(2, 3).bfloat16(),
            "num_batches_tracked": torch.tensor(1234567890123),
            "parameter": torch.nn.Parameter(normal(2, 2)),
            "bool": torch.tensor([True, False, True]),
            "empty": torch.zeros(0, 3),
        }
    )
    # Module.state_dict() leaves this attribute on the dict, and it is saved with it.
    state._metadata = collections.OrderedDict({"": {"version": 1}, "bn": {"version": 2}})
    assert not state["transposed"].is_contiguous()
    assert state["shared.second"].storage_offset() == 4
    return state


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def main() -> None:
    state = state_dict()
    torch.save(state, FOLDER / "torch_zip.pth")
    torch.save(state, FOLDER / "torch_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": state, "epoch": 3, "arch": "x"}, FOLDER / "torch_nested.pth")
    expected = {name: as_numpy(tensor) for name, tensor in state.items()}
    np.savez_compressed(FOLDER / "torch_files.npz", **expected)


if __name__ == "__main__":
    main()
