"""The record of a family of networks, with all that the package knows of it, and its modules' base.

A new family is a file with its module, its frozen specs and a ``Family`` named ``FAMILY``, and a
line in ``registry.FAMILIES``. Nothing else in the package asks which family a network belongs to.
"""

import abc
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from effnetv2_jax.models.layers import check_images, dropout
from effnetv2_jax.runtime.errors import Number, UsageError, unknown_name

CLASSIFIER = "classifier"
"""The name of the last layer in every network."""


class Spec(Protocol):
    """The fields that the specs of all families have; each is a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str: ...
    @property
    def train_size(self) -> int: ...
    @property
    def eval_size(self) -> int: ...
    @property
    def dropout_rate(self) -> float: ...
    @property
    def survival_prob(self) -> float: ...
    @property
    def preprocessing(self) -> str: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def pooling(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Feature:
    """A feature map that a network can return.

    Attributes:
        name: The map's name in the result of ``features``.
        channels: The number of its channels.
        reduction: The side of an image over that of the map, rounded up for odd sizes.
    """

    name: str
    channels: int
    reduction: int


REMAT = ("none", "blocks", "stages")
"""Names for what the backward pass recomputes to save memory: nothing, each block or each stage.

Training then keeps only the input of each block or stage, and batch norm's statistics. A
transformer has no stages, and recomputes blocks instead.
"""


def dropout_rngs(rngs: nnx.Rngs) -> nnx.Rngs:
    """Returns a network's own source of ``dropout`` keys, made from the one it is built with."""
    # Linen's init may bring only a params key.
    has_dropout = "dropout" in rngs or "default" in rngs
    return nnx.Rngs(dropout=rngs.dropout() if has_dropout else rngs.params())


class Network(nnx.Module):
    """The base of the modules of all families, with their checks, modes and classifier.

    A subclass makes its layers, ``classifier`` and last ``rngs``, and defines ``poolings``,
    ``pooled``, ``new_classifier``, ``feature_info`` and ``maps``.

    Args:
        spec: The spec that the module is built from.
        num_classes: The number of classes; 0 for no classifier.
        remat: A name in ``REMAT``.
    """

    poolings: ClassVar[Mapping[str, Callable[[Any], jax.Array]]]
    """The family's poolings by name."""

    classifier: nnx.Linear | None
    rngs: nnx.Rngs

    def __init__(self, spec: Any, num_classes: int, remat: str):
        self._check(num_classes, spec.pooling)
        if remat not in REMAT:
            raise unknown_name("remat", remat, REMAT)
        Number(least=1, whole=True).check("in_channels", spec.in_channels)
        self.spec = spec
        self.remat = remat
        self.deterministic = True

    def _check(self, num_classes: int, pooling: str) -> None:
        Number(whole=True).check("num_classes", num_classes)
        if pooling not in self.poolings:
            raise unknown_name("pooling", pooling, self.poolings)

    @abc.abstractmethod
    def new_classifier(self, num_classes: int, rngs: nnx.Rngs) -> nnx.Linear:
        """Returns the layer ``classifier`` with initial parameters for one class or more."""

    @property
    @abc.abstractmethod
    def feature_info(self) -> tuple[Feature, ...]:
        """The maps that ``features`` can return, from the image to the classifier."""

    @abc.abstractmethod
    def maps(
        self,
        images: jax.Array,
        train: bool | None,
        rngs: nnx.Rngs,
        index: jax.Array | None,
        count: int,
    ) -> list[jax.Array]:
        """Returns the first ``count`` maps of ``feature_info`` and computes no more than these.

        The other arguments are those of ``features`` after its checks; rngs is not None.
        """

    @abc.abstractmethod
    def pooled(
        self, images: jax.Array, train: bool | None, rngs: nnx.Rngs, index: jax.Array | None
    ) -> jax.Array:
        """Returns the features that the classifier sees, pooled as the spec says, in float32.

        The arguments are those of ``__call__`` after its checks; rngs is not None.
        """

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool | None = None,
        rngs: nnx.Rngs | None = None,
        dropout_rate: float | jax.Array | None = None,
        index: jax.Array | None = None,
    ) -> jax.Array:
        """Classifies images.

        Args:
            images: Float [batch, height, width, in_channels], normalised as
                ``spec.preprocessing`` says. An EfficientNet takes any height and width, a ViT only
                ``spec.eval_size``.
            train: True uses the batch's statistics, stochastic depth and dropout in all layers, and
                False in none. With None, each layer does what ``.train()`` or ``.eval()`` said last
                of it or of a module around it, so that some can be frozen.
            rngs: Gives the ``dropout`` key in training. None takes the model's own.
            dropout_rate: The rate before the classifier; it may be traced. None takes the spec's.
            index: The number of each image, int32 [batch]. With the key, it decides what stochastic
                depth and dropout drop of an image, wherever in a batch and on whatever device it
                is. None takes 0 … batch − 1.

        Returns:
            float32 logits [batch, num_classes]. If num_classes is 0, the float32 features
            [batch, features] that a classifier would see. Pooling ``none`` gives these of each
            pixel of the last map, [batch, height, width, ...], or of a ViT's tokens, [batch, 1 +
            patches, ...].

        Raises:
            UsageError: If the images or index have another shape or dtype.
        """
        check_images(images, index, self.spec.in_channels)
        rngs = self.rngs if rngs is None else rngs
        x = self.pooled(images, train=train, rngs=rngs, index=index)
        if self.classifier is None:
            return x
        if (not self.deterministic) if train is None else train:
            rate = self.spec.dropout_rate if dropout_rate is None else dropout_rate
            x = dropout(x, rate, rngs.dropout(), index)
        return self.classifier(x).astype(jnp.float32)

    def features(
        self,
        images: jax.Array,
        levels: Iterable[int] | None = None,
        *,
        train: bool | None = None,
        rngs: nnx.Rngs | None = None,
        index: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Returns feature maps, for detection and segmentation.

        >>> from effnetv2_jax import create_model
        >>> model = create_model("efficientnetv2-tiny", num_classes=0)
        >>> maps = model.features(jnp.zeros((1, 64, 64, 3)), levels=(1, 3))
        >>> {name: x.shape for name, x in maps.items()}
        {'reduction_1': (1, 32, 32, 8), 'reduction_3': (1, 8, 8, 24)}

        Args:
            images: Float [batch, height, width, in_channels], as for ``__call__``.
            levels: The numbers of the maps, which ``feature_info`` lists from 1. Layers after the
                last of them are not computed. None takes all.
            train: The mode, as for ``__call__``.
            rngs: Gives the ``dropout`` key in training. None takes the model's own.
            index: The number of each image, as for ``__call__``.

        Returns:
            The maps by name, [batch, height, width, channels] of the compute dtype. An EfficientNet
            has ``reduction_1`` … ``reduction_5``, the outputs of the last blocks before the image
            is halved again: [batch, ceil(height / 2^i), ceil(width / 2^i), channels], where a
            smaller ``output_stride`` bounds 2^i. A ViT has ``block_1`` …, the patches after each
            block.

        Raises:
            UsageError: If the images or index have another shape or dtype, or there is no such
                level.
        """
        check_images(images, index, self.spec.in_channels)
        info = self.feature_info
        chosen = range(1, len(info) + 1) if levels is None else tuple(levels)
        if not chosen or not all(1 <= level <= len(info) for level in chosen):
            raise UsageError(f"levels must be some of 1 … {len(info)}, got {list(chosen)}")
        rngs = self.rngs if rngs is None else rngs
        maps = self.maps(images, train=train, rngs=rngs, index=index, count=max(chosen))
        return {info[level - 1].name: maps[level - 1] for level in chosen}

    def reset_classifier(
        self, num_classes: int, *, pooling: str | None = None, rngs: nnx.Rngs | None = None
    ) -> None:
        """Replaces the classifier by a new one with initial parameters.

        Make optimisers after this, because they hold on to the parameters.

        Args:
            num_classes: The new number of classes; 0 for no classifier.
            pooling: The new pooling; None keeps the pooling.
            rngs: Gives the ``params`` keys; None means ``nnx.Rngs(0)``.

        Raises:
            UsageError: If num_classes or pooling are not as for ``create_model``.
        """
        pooling = self.spec.pooling if pooling is None else pooling
        self._check(num_classes, pooling)
        self.spec = dataclasses.replace(self.spec, pooling=pooling)
        rngs = nnx.Rngs(0) if rngs is None else rngs
        classifier = self.new_classifier(num_classes, rngs) if num_classes else None
        self.classifier = nnx.data(classifier)


@dataclasses.dataclass(frozen=True)
class Names:
    """The names that one library gives to the layers of a family.

    The same table serves both directions: reading the library's files and writing them.

    Attributes:
        library: The library's name in messages.
        convention: The library's convention for the parts of a layer and the axes of a kernel, a
            name in ``weights.dialects.conventions``.
        anchor: A tensor that every network has in this library's files. Any text before it
            (``module.``, ``efficientnetv2-s/``) stands before all other names too.
        layers: A function from a spec to the layers it has, {our name: the library's name}. A
            tensor with a name of its own, such as a class token, is listed as if it were a layer.
            None if the library's names are ours.
        territory: Matches the names of the tensors that belong to a network. Other tensors in the
            file are ignored.
        trained: A function from our model's name and timm's name of the architecture (or None) to
            the fields of the spec that say how such networks compute, and in libraries other than
            timm which images they expect. It raises UsageError if the two names do not tell.
        normalization: A function from a spec to patterns of the names of the tensors by which the
            network in the file normalises pixels of 0 … 1: their mean, their variance, and the
            number of those it was taken from. None if such networks have no such layer.
        our_model: A function from timm's name of the architecture to our model's name, which tells
            networks of equal shapes apart; None for other architectures.
        their_model: A function from a spec to the name of the library's network that computes the
            same; None if there is no such network.
    """

    library: str
    convention: str
    anchor: str
    layers: Callable[[Any], Mapping[str, str]] | None
    territory: re.Pattern[str]
    trained: Callable[[str, str | None], Mapping[str, Any]]
    normalization: Callable[[Any], tuple[str, ...] | None] = lambda spec: None
    our_model: Callable[[str], str | None] = lambda architecture: None
    their_model: Callable[[Any], str | None] = lambda spec: None


@dataclasses.dataclass(frozen=True)
class Positions:
    """A position embedding, whose shape depends on the size of the images.

    Attributes:
        tensor: The tensor's name.
        grid: A function from the tensor's shape to the number of patches along a side of the image;
            0 if no square image has that shape.
        eval_size: A function from a spec and a grid to the side of the image in px.
        interpolate: A function from the tensor and a new grid to the tensor for that grid.
    """

    tensor: str
    grid: Callable[[tuple[int, ...]], int]
    eval_size: Callable[[Any, int], int]
    interpolate: Callable[[np.ndarray, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of networks.

    Attributes:
        name: The family's name in the descriptions that are written beside weights.
        title: The family's name in messages.
        spec: The type of its specs.
        module: The type of its modules, which takes a spec, the arguments of ``create_model`` and
            ``rngs``. All but the spec and ``rngs`` have defaults.
        specs: All networks of the family that have a name.
        read_spec: Makes a spec from its fields as JSON holds them.
        as_trained: The fields of a spec that change what given weights compute, and the modules'
            attributes that follow each: {field: ((type of module, attribute), ...)}. Weights bring
            these fields along.
        also_adopted: The other fields that weights bring along.
        compared: The fields that must be equal for weights to fit, although no shape shows them.
        input_kernel: The kernel that sees the images, [height, width, in_channels, out_channels].
        chosen: The fields that a model may have otherwise than its weights had. A model that is
            built for weights has them as they were.
        lacks: The arguments of ``create_model`` that the module does not take.
        names: The names of the layers in each library's files. The first one that a file matches
            counts.
        positions: The position embedding; None if the family has none.
    """

    name: str
    title: str
    spec: type[Any]
    module: Callable[..., Network]
    specs: Mapping[str, Spec]
    read_spec: Callable[[Mapping[str, Any]], Spec]
    as_trained: Mapping[str, tuple[tuple[type, str], ...]]
    also_adopted: tuple[str, ...]
    compared: tuple[str, ...]
    names: tuple[Names, ...]
    input_kernel: str
    chosen: tuple[str, ...] = ()
    lacks: frozenset[str] = frozenset()
    positions: Positions | None = None

    @property
    def adopted(self) -> tuple[str, ...]:
        """All fields that weights bring along."""
        return (*self.as_trained, *self.also_adopted)
