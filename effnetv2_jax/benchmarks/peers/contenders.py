"""The contenders of the benchmark ``peers``, and what each calls our models."""

import dataclasses
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from effnetv2_jax.runtime.errors import UsageError

_HERE = pathlib.Path(__file__).resolve().parent

OURS = "ours"


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something that can be timed beside our code.

    Attributes:
        title: Its name in tables.
        file: The module that a worker loads, with ``facts()`` and ``prepare(what, …)``.
        models: Its names for our models. None means our names, for all models.
        training: The parts of its training step, beside forward and backward pass.
        inference: The way in which inference is run.
        environment: Environment variables of its process.
        options: Further arguments of ``prepare``.
        lives_elsewhere: It runs in the interpreter of ``--torch_python``.
    """

    title: str
    file: pathlib.Path
    models: Mapping[str, str] | None
    training: str
    inference: str
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    lives_elsewhere: bool = False

    def name_of(self, model: str) -> str | None:
        """Returns its name for a model of ours, or None if it has no such model."""
        return model if self.models is None else self.models.get(model)


_V1 = [f"b{number}" for number in range(8)]
_V2 = ["b0", "b1", "b2", "b3", "s", "m", "l"]

KERAS_MODELS = {f"efficientnet-{size}": f"EfficientNet{size.upper()}" for size in _V1} | {
    f"efficientnetv2-{size}": f"EfficientNetV2{size.upper()}" for size in _V2
}

# The models that begin with "tf" pad as the official code does, and as ours do.
TIMM_MODELS = (
    {f"efficientnet-{size}": f"tf_efficientnet_{size}" for size in [*_V1, "b8", "l2"]}
    | {f"efficientnet-lite{size}": f"tf_efficientnet_lite{size}" for size in range(5)}
    | {f"efficientnetv2-{size}": f"tf_efficientnetv2_{size}" for size in [*_V2, "xl"]}
    | {"efficientnetv2-rw-t": "efficientnetv2_rw_t"}
)


def _keras(backend: str, title: str, call: str) -> Contender:
    return Contender(
        title=f"Keras on {title}",
        file=_HERE / "keras_contender.py",
        models=KERAS_MODELS,
        training="label-smoothed cross-entropy, RMSprop with momentum and weight decay; its mean "
        "loss; fit or train_on_batch, whichever is faster",
        inference=f"{call} around the model, or predict_on_batch, whichever is faster",
        environment={"KERAS_BACKEND": backend},
    )


def _timm(title: str, *, compiled: bool) -> Contender:
    return Contender(
        title=title,
        file=_HERE / "torch_contender.py",
        models=TIMM_MODELS,
        training="label-smoothed cross-entropy, RMSprop with momentum and weight decay"
        + ("; the model is compiled, loss and update are eager" if compiled else ""),
        inference="in inference_mode",
        options={"compiled": compiled},
        lives_elsewhere=True,
    )


CONTENDERS: dict[str, Contender] = {
    OURS: Contender(
        title="effnetv2_jax",
        file=_HERE / "our_contender.py",
        models=None,
        training="normalisation of uint8 images, label-smoothed cross-entropy, RMSProp with "
        "momentum and weight decay; also a moving average of all weights, a check that all is "
        "finite, and metrics",
        inference="a jitted call, batch norm folded into the convolutions",
    ),
    "keras-tensorflow": _keras("tensorflow", "TensorFlow", "tf.function"),
    "keras-jax": _keras("jax", "JAX", "jax.jit"),
    "timm-eager": _timm("timm, PyTorch eager", compiled=False),
    "timm-compiled": _timm("timm, torch.compile", compiled=True),
}
"""All contenders by name; ours is the first."""

PEERS = tuple(name for name in CONTENDERS if name != OURS)


def find_python(name: str | None) -> str:
    """Returns the path of the interpreter in a ``--torch_python`` flag; None is this one.

    Raises:
        UsageError: If there is no such program.
    """
    if name is None:
        return sys.executable
    found = shutil.which(os.path.expanduser(name))
    if found is None:
        raise UsageError(f"--torch_python must be a program, got {name!r}")
    # Links are kept: a virtual environment's interpreter is one, and finds its folder by it.
    return os.path.abspath(found)
