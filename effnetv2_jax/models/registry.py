"""The families of networks, and the way from a name to a spec to a module."""

import dataclasses
import fnmatch
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from effnetv2_jax.models import efficientnet_family, vit_family
from effnetv2_jax.models.counting import count_multiply_adds, count_parameters
from effnetv2_jax.models.family import Family, Network, Spec
from effnetv2_jax.models.layers import AxisName
from effnetv2_jax.runtime.errors import (
    LARGEST_SIDE,
    Number,
    UsageError,
    check_numbers,
    unknown_name,
)

FAMILIES: tuple[Family, ...] = (efficientnet_family.FAMILY, vit_family.FAMILY)
"""The records of all families; a new one is added here."""

SPECS: dict[str, Spec] = {name: spec for family in FAMILIES for name, spec in family.specs.items()}

NUMBERS = {
    "bn_momentum": Number(most=1),
    "bn_epsilon": Number(above=0, optional=True),
    "norm_epsilon": Number(above=0, optional=True),
    "head_init_scale": Number(),
    "survival_prob": Number(above=0, most=1),
    "dropout_rate": Number(below=1),
    "train_size": Number(least=1, most=LARGEST_SIDE, whole=True),
    "eval_size": Number(least=1, most=LARGEST_SIDE, whole=True),
    "stem_filters": Number(least=1, whole=True),
    "head_filters": Number(least=1, whole=True),
}
"""The fields of specs that are numbers and may be changed, and which ones they may be."""


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """The facts about a model that are known without building it.

    Attributes:
        name: The model's name, as for ``create_model``.
        num_classes: The number of classes of the classifier that is counted.
        parameters: The number of trainable parameters.
        multiply_adds: The number of multiply-adds for one image at ``image_size``, which the paper
            calls FLOPs.
        image_size: The side in px at which multiply_adds is counted.
        train_size: The side of training images in px.
        eval_size: The side of evaluation images in px.
        preprocessing: The input family's name in ``effnetv2_jax.preprocessing``.
        spec: The complete description of the network.
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
    """Returns the frozen spec of a model.

    >>> get_spec("efficientnetv2-s").eval_size
    384

    Raises:
        UsageError: If the name is unknown; the message lists the nearest names.
    """
    if name not in SPECS:
        listed_by = "effnetv2_jax.list_models() or docs/models.md"
        raise unknown_name("model", name, SPECS, listed_by=listed_by)
    return SPECS[name]


def family_of(spec: Spec) -> Family:
    """Returns the family that a spec belongs to."""
    return next(family for family in FAMILIES if isinstance(spec, family.spec))


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    dtype=jnp.float32,
    axis_name: AxisName | None = None,
    bn_group_size: int | None = None,
    remat: str = "none",
    scan_blocks: bool = False,
    drop_path_rate: float | None = None,
    rngs: nnx.Rngs | None = None,
    **overrides,
) -> Network:
    """Builds a model with freshly initialised parameters, in evaluation mode.

    ``effnetv2_jax.create_model`` takes the same arguments, and ``pretrained``.

    >>> model = create_model("efficientnetv2-tiny", num_classes=10)
    >>> model(jnp.zeros((1, 32, 32, 3))).shape
    (1, 10)

    Args:
        name: One of ``list_models()``, for example ``efficientnetv2-s``.
        num_classes: The number of classes; 0 leaves out the classifier, and the model returns
            pooled features.
        dtype: The dtype of the computation, float32 or bfloat16. Parameters are float32.
        axis_name: The mesh axis, or axes, over whose devices batch norm averages its statistics in
            training. Networks without batch norm ignore it.
        bn_group_size: The number of neighbouring devices that average together, at most all of
            them; None for all. Networks without batch norm ignore it.
        remat: The part of the network that the backward pass computes again to save memory:
            ``none``, ``blocks`` or ``stages``.
        scan_blocks: Runs equal blocks of an EfficientNet as a loop, which compiles faster.
            Parameters and results stay the same.
        drop_path_rate: The rate of stochastic depth in the last block, in timm's words. None leaves
            it to ``survival_prob``, which is 1 − drop_path_rate.
        rngs: The keys ``params`` and ``dropout``; None means ``nnx.Rngs(0)``.
        **overrides: Fields of the model's spec to change, for example ``in_channels=1``,
            ``output_stride=8``, ``pooling="avgmax"``, ``survival_prob=1.0`` or ``bn_momentum=0.9``.
            A ViT for another image size needs ``eval_size=224``.

    Returns:
        The Flax NNX module.

    Raises:
        UsageError: If the name, remat or an override is unknown, a number is not as ``NUMBERS``
            says, num_classes is no whole number of at least 0, dtype has no floating point, or a
            network is asked for what it does not have.
    """
    spec = get_spec(name)
    try:
        is_floating = jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        is_floating = False
    if not is_floating:
        raise UsageError(f"dtype must be float32 or bfloat16, got {dtype!r}")
    if drop_path_rate is not None:
        if "survival_prob" in overrides:
            raise UsageError("drop_path_rate is 1 - survival_prob: give one of them, not both")
        if not 0 <= drop_path_rate < 1:
            raise UsageError(f"drop_path_rate must be in [0, 1), got {drop_path_rate}")
        overrides["survival_prob"] = 1 - drop_path_rate
    for field in overrides:
        if field not in vars(spec):
            others = [x.title for x in FAMILIES if field in x.spec.__dataclass_fields__]
            if others:
                raise UsageError(
                    f"{field} is an argument for {others[0]}s, but {name} is a "
                    f"{family_of(spec).title}"
                )
            arguments = set(inspect.signature(create_model).parameters) - {"overrides"}
            kind = f"argument of create_model({name!r})"
            raise unknown_name(kind, field, arguments | set(vars(spec)))
    check_numbers(NUMBERS, overrides)
    return build(
        dataclasses.replace(spec, **overrides),
        num_classes=num_classes,
        dtype=dtype,
        axis_name=axis_name,
        bn_group_size=bn_group_size,
        remat=remat,
        scan_blocks=scan_blocks,
        rngs=nnx.Rngs(0) if rngs is None else rngs,
    )


def build(spec: Spec, **arguments: Any) -> Network:
    """Builds the network that a spec describes.

    Args:
        spec: The network, of any family.
        **arguments: Arguments of ``create_model``, with ``rngs``. Those that the network does not
            have are ignored, except that ``scan_blocks`` must be False.

    Raises:
        UsageError: As ``create_model``.
    """
    family = family_of(spec)
    if arguments.get("scan_blocks") and "scan_blocks" in family.lacks:
        raise UsageError(
            f"scan_blocks must be False for {spec.name}: no {family.title} can scan its blocks"
        )
    taken = {name: value for name, value in arguments.items() if name not in family.lacks}
    return family.module(spec, **taken)


class OneKey:
    """A stand-in for ``nnx.Rngs`` under a trace, which returns the same key every time.

    ``nnx.Rngs`` counts its calls, which under a trace takes time quadratic in their number.
    """

    def __init__(self):
        self._key = jax.random.key(0)

    def params(self) -> jax.Array:
        return self._key

    dropout = params

    def __contains__(self, stream: str) -> bool:
        return True


def abstract_model(name: str, **arguments: Any) -> Network:
    """Returns a model with shapes instead of arrays, in a moment and without memory.

    >>> abstract_model("efficientnetv2-tiny").stem.conv.kernel.shape
    (3, 3, 3, 8)

    Args:
        name: The model's name, as for ``create_model``.
        **arguments: Arguments of ``create_model`` except ``rngs``.

    Returns:
        The module with a ``jax.ShapeDtypeStruct`` in place of every array (``nnx.eval_shape``).

    Raises:
        UsageError: As ``create_model``.
    """

    def create() -> Network:
        rngs: Any = OneKey()  # made under the trace, so that no device is touched
        return create_model(name, rngs=rngs, **arguments)

    return nnx.eval_shape(create)


def list_models(pattern: str = "*") -> list[str]:
    """Returns the sorted names of the models that match a shell pattern.

    >>> list_models("efficientnetv2-b*")
    ['efficientnetv2-b0', 'efficientnetv2-b1', 'efficientnetv2-b2', 'efficientnetv2-b3']

    Args:
        pattern: A pattern with ``*``, ``?`` and ``[…]``, as of files in a shell.
    """
    return sorted(fnmatch.filter(SPECS, pattern))


@functools.cache
def model_info(name: str, *, num_classes: int = 1000, image_size: int | None = None) -> ModelInfo:
    """Counts the parameters and multiply-adds of a model without allocating it.

    >>> model_info("efficientnetv2-tiny", num_classes=10).parameters
    17228

    Args:
        name: One of ``list_models()``.
        num_classes: The number of classes.
        image_size: The side in px at which multiply-adds are counted; None means the evaluation
            size. A ViT is counted as if it were made for this size, because its position embedding
            depends on it.

    Raises:
        UsageError: If the name is unknown or the image size is below 1.
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
