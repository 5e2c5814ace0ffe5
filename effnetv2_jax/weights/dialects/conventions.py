"""The libraries' conventions, which are the same for every network: a table.

A convention says how a library calls the parts of a layer, and in which order the axes of a kernel
lie. Our kernels are [height, width, in, out], [height, width, 1, channels] for a depthwise
convolution, and [in, out].
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Convention:
    """A library's way of storing a layer.

    Attributes:
        parts: The names of a layer's tensors, {role as in ``layout.Tensor``: the library's name}.
        axes: The order of a kernel's axes by its role: ``theirs.transpose(axes)`` is ours. Other
            tensors are stored as ours are.
        separator: The text between a layer's name and its part.
    """

    parts: Mapping[str, str]
    axes: Mapping[str, tuple[int, ...]]
    separator: str


_KERAS_PARTS = {
    "conv": "kernel",
    "depthwise": "kernel",
    "dense": "kernel",
    "bias": "bias",
    "scale": "gamma",
    "shift": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
}
# [height, width, in, out], [height, width, channels, 1], [in, out].
_KERAS_AXES = {"depthwise": (0, 1, 3, 2)}

CONVENTIONS = {
    # Whole names are ours, so that no part has to be named.
    "effnetv2_jax": Convention({}, {}, "."),
    "pytorch": Convention(
        parts={
            "conv": "weight",
            "depthwise": "weight",
            "dense": "weight",
            "bias": "bias",
            "scale": "weight",
            "shift": "bias",
            "mean": "running_mean",
            "var": "running_var",
        },
        # [out, in, height, width], [channels, 1, height, width], [out, in].
        axes={"conv": (2, 3, 1, 0), "depthwise": (2, 3, 1, 0), "dense": (1, 0)},
        separator=".",
    ),
    "keras": Convention(_KERAS_PARTS, _KERAS_AXES, "/"),
    # Keras 3 counts a layer's tensors in the order in which they were made.
    "keras_numbers": Convention(
        parts={
            "conv": "0",
            "depthwise": "0",
            "dense": "0",
            "bias": "1",
            "scale": "0",
            "shift": "1",
            "mean": "2",
            "var": "3",
        },
        axes=_KERAS_AXES,
        separator="/",
    ),
    "tensorflow": Convention(_KERAS_PARTS | {"depthwise": "depthwise_kernel"}, _KERAS_AXES, "/"),
}
