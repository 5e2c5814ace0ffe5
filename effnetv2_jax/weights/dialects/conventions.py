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


def _parts(names: str) -> dict[str, str]:
    roles = ("conv", "depthwise", "dense", "bias", "scale", "shift", "mean", "var")
    return dict(zip(roles, names.split(), strict=True))


_KERAS_PARTS = _parts("kernel kernel kernel bias gamma beta moving_mean moving_variance")
# [height, width, in, out], [height, width, channels, 1], [in, out].
_KERAS_AXES = {"depthwise": (0, 1, 3, 2)}

CONVENTIONS = {
    # Whole names are ours, so that no part has to be named.
    "effnetv2_jax": Convention({}, {}, "."),
    "pytorch": Convention(
        _parts("weight weight weight bias weight bias running_mean running_var"),
        # [out, in, height, width], [channels, 1, height, width], [out, in].
        axes={"conv": (2, 3, 1, 0), "depthwise": (2, 3, 1, 0), "dense": (1, 0)},
        separator=".",
    ),
    "keras": Convention(_KERAS_PARTS, _KERAS_AXES, "/"),
    # Keras 3 counts a layer's tensors in the order in which they were made.
    "keras_numbers": Convention(_parts("0 0 0 1 0 1 2 3"), _KERAS_AXES, "/"),
    "tensorflow": Convention(_KERAS_PARTS | {"depthwise": "depthwise_kernel"}, _KERAS_AXES, "/"),
}
