"""The record of a family of networks, with all that the package knows of it, and its modules' base.

A new family is a file with its module, its frozen specs and a ``Family`` named ``FAMILY``, and a
line in ``registry.FAMILIES``. Nothing else in the package asks which family a network belongs to.
"""

import abc
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from effnetv2_jax.models.layers import check_images, dropout
from effnetv2_jax.runtime.errors import Number, unknown_name

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

    A subclass makes its layers, ``classifier`` and last ``rngs``, and defines ``pooled``.

    Args:
        spec: The spec that the module is built from.
        num_classes: The number of classes; 0 for no classifier.
        remat: A name in ``REMAT``.
    """

    classifier: nnx.Linear | None
    rngs: nnx.Rngs

    def __init__(self, spec: Any, num_classes: int, remat: str):
        Number(whole=True).check("num_classes", num_classes)
        if remat not in REMAT:
            raise unknown_name("remat", remat, REMAT)
        self.spec = spec
        self.remat = remat
        self.deterministic = True

    @abc.abstractmethod
    def pooled(
        self, images: jax.Array, train: bool | None, rngs: nnx.Rngs, index: jax.Array | None
    ) -> jax.Array:
        """Returns the features that the classifier sees, float32 [batch, features].

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
            images: Float [batch, height, width, 3], normalised as ``spec.preprocessing`` says. An
                EfficientNet takes any height and width, a ViT only ``spec.eval_size``.
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
            [batch, features] that a classifier would see.

        Raises:
            UsageError: If the images or index have another shape or dtype.
        """
        check_images(images, index)
        rngs = self.rngs if rngs is None else rngs
        x = self.pooled(images, train=train, rngs=rngs, index=index)
        if self.classifier is None:
            return x
        if (not self.deterministic) if train is None else train:
            rate = self.spec.dropout_rate if dropout_rate is None else dropout_rate
            x = dropout(x, rate, rngs.dropout(), index)
        return self.classifier(x).astype(jnp.float32)


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
    lacks: frozenset[str] = frozenset()
    positions: Positions | None = None

    @property
    def adopted(self) -> tuple[str, ...]:
        """All fields that weights bring along."""
        return (*self.as_trained, *self.also_adopted)
