"""Tensors in somebody's file, in their own names and layout, read when they are asked for."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensors:
    """What a file holds.

    Attributes:
        path: of the file or folder, for people.
        shapes: of the tensors by name.
        read: of (name) → the tensor, in the dtype it is stored in; UsageError where it cannot be
            read.
        about: what else the file says of itself, by the name of what says it: ``architecture``
            (timm's), ``effnetv2_jax`` (ours).
    """

    path: pathlib.Path
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
