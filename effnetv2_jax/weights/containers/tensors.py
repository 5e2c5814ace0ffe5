"""The tensors in somebody's file, in their names and layout, read one by one."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The content of a file.

    Attributes:
        path: The file or folder, for messages.
        shapes: The shapes of the tensors by name.
        read: A function from a name to the tensor in the dtype that it is stored in. It raises
            UsageError if the tensor cannot be read.
        about: Other facts that the file tells of itself: ``architecture`` is timm's name of the
            network, ``model_args`` and ``pretrained_cfg`` are those of timm's ``config.json`` or
            of its checkpoints, ``names`` are the names of the file and its folder,
            ``effnetv2_jax`` is our description.
    """

    path: pathlib.Path
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
