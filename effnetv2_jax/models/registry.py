"""Name → spec → module."""

import dataclasses
import fnmatch
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from effnetv2_jax.models.counting import count_multiply_adds, count_parameters
from effnetv2_jax.models.efficientnet import EfficientNet
from effnetv2_jax.models.efficientnet_specs import EFFICIENTNET_SPECS, EfficientNetSpec
from effnetv2_jax.models.layers import AxisName
from effnetv2_jax.models.vit import VisionTransformer
from effnetv2_jax.models.vit_specs import VIT_SPECS, VisionTransformerSpec
from effnetv2_jax.runtime.errors import UsageError, unknown_name

Spec = EfficientNetSpec | VisionTransformerSpec
Network = EfficientNet | VisionTransformer

SPECS: dict[str, Spec] = {**EFFICIENTNET_SPECS, **VIT_SPECS}

_NETWORKS: dict[type[Spec], Callable[..., Network]] = {
    EfficientNetSpec: EfficientNet,
    VisionTransformerSpec: VisionTransformer,
}
"""What builds a network from a spec; all take the same arguments beside it."""


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What one wants to know of a model before building it.

    Attributes:
        name: as in ``create_model``.
        num_classes: of the classifier that is counted.
        parameters: trainable parameters.
        multiply_adds: of one image at ``image_size``; what the paper calls FLOPs.
        image_size: side in px at which multiply_adds is counted, the evaluation size by default.
        train_size: side of training images in px.
        eval_size: side of evaluation images in px.
        preprocessing: name of the input's family in ``effnetv2_jax.preprocessing``.
        spec: all the rest.
    """

    name: str
    num_classes: int
    parameters: int
    multiply_adds: int
    image_size: int
    train_size: int
    eval_size: int
    preprocessing: str
    spec: Spec


def get_spec(name: str) -> Spec:
    """The frozen spec of a model; raises UsageError with the near names for an unknown one."""
    if name not in SPECS:
        raise unknown_name("model", name, SPECS)
    return SPECS[name]


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    dtype=jnp.float32,
    axis_name: AxisName | None = None,
    bn_group_size: int | None = None,
    remat: str = "none",
    scan_blocks: bool = False,
    rngs: nnx.Rngs | None = None,
    **overrides,
) -> Network:
    """Builds a model with freshly initialised parameters, in evaluation mode.

    Args:
        name: one of ``list_models()``, e.g. ``efficientnetv2-s``.
        num_classes: of the classifier; 0 gives pooled features.
        dtype: of the computation, float32 or bfloat16; parameters are float32.
        axis_name: mesh axis, or axes, over whose devices batch norm averages its statistics in
            training; of no meaning where there is none.
        bn_group_size: neighbouring devices that do so together, at most all; None for all.
        remat: what training computes anew in the backward pass to save memory: ``none``,
            ``blocks`` or ``stages``.
        scan_blocks: equal blocks of an EfficientNet become a loop, which is compiled in less time;
            parameters and results stay the same.
        rngs: keys ``params`` and ``dropout``; None means ``nnx.Rngs(0)``.
        **overrides: fields of the model's spec to change, e.g. ``survival_prob=1.0`` or
            ``bn_momentum=0.9``; for a ViT of another image size ``eval_size=224``.

    Returns:
        The Flax NNX module.

    Raises:
        UsageError: for an unknown name, remat or override, a negative num_classes, or scan_blocks
            of a network that has none.
    """
    spec = get_spec(name)
    if scan_blocks and not isinstance(spec, EfficientNetSpec):
        raise UsageError(f"scan_blocks must be False for {name}, which is no EfficientNet")
    for field in overrides:
        if field not in vars(spec):
            raise unknown_name(f"field of {type(spec).__name__}", field, vars(spec))
    return build(
        dataclasses.replace(spec, **overrides),
        num_classes=num_classes,
        dtype=dtype,
        axis_name=axis_name,
        bn_group_size=bn_group_size,
        remat=remat,
        rngs=nnx.Rngs(0) if rngs is None else rngs,
        **({"scan_blocks": True} if scan_blocks else {}),
    )


class _OneKey:
    """In place of ``nnx.Rngs``, whose counting under a trace takes time quadratic in its calls."""

    def __init__(self):
        self._key = jax.random.key(0)

    def params(self) -> jax.Array:
        return self._key

    dropout = params

    def __contains__(self, stream: str) -> bool:
        return True


def abstract_model(name: str, **arguments: Any) -> Network:
    """The shapes of a model (``nnx.eval_shape``), of any size in a moment.

    Args:
        name: as for ``create_model``.
        **arguments: likewise, without ``rngs``.

    Returns:
        The module with a ``jax.ShapeDtypeStruct`` in place of every array.

    Raises:
        UsageError: as ``create_model``.
    """

    def create() -> Network:
        rngs: Any = _OneKey()  # made under the trace, so that no device is touched
        return create_model(name, rngs=rngs, **arguments)

    return nnx.eval_shape(create)


def build(spec: Spec, **arguments: Any) -> Network:
    """The network of a spec, whatever its kind; see ``create_model`` for the arguments."""
    return _NETWORKS[type(spec)](spec, **arguments)


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that match a shell pattern such as ``efficientnetv2*``, sorted."""
    return sorted(fnmatch.filter(SPECS, pattern))


@functools.cache
def model_info(name: str, *, num_classes: int = 1000, image_size: int | None = None) -> ModelInfo:
    """Parameters, multiply-adds and sizes of a model, without allocating it.

    Args:
        name: one of ``list_models()``.
        num_classes: of the classifier.
        image_size: side in px at which multiply-adds are counted; None means the evaluation size.
            A ViT is counted as one that is made for it, of which the position embedding is part.

    Raises:
        UsageError: for an unknown name or an image size below 1.
    """
    spec = get_spec(name)
    image_size = spec.eval_size if image_size is None else image_size
    if image_size < 1:
        raise UsageError(f"image_size must be at least 1 px, got {image_size}")
    model = abstract_model(name, num_classes=num_classes, eval_size=image_size)
    graphdef, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return ModelInfo(
        name=name,
        num_classes=num_classes,
        parameters=count_parameters(model),
        multiply_adds=count_multiply_adds(
            lambda state, images: nnx.merge(graphdef, state)(images), state, images
        ),
        image_size=image_size,
        train_size=spec.train_size,
        eval_size=spec.eval_size,
        preprocessing=spec.preprocessing,
        spec=spec,
    )
