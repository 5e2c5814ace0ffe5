"""Models with published weights, and models for the Hugging Face Hub."""

import json
import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from effnetv2_jax import models
from effnetv2_jax.models.family import CLASSIFIER, Network
from effnetv2_jax.models.registry import family_of
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.files import local_path, unnamed
from effnetv2_jax.weights import layout
from effnetv2_jax.weights.containers.files import IN_REPOSITORIES
from effnetv2_jax.weights.dialects.dialect import Dialect, get_dialect
from effnetv2_jax.weights.load import put
from effnetv2_jax.weights.published import find_pretrained
from effnetv2_jax.weights.read import Weights, read_weights
from effnetv2_jax.weights.save import as_weights, save_weights


def create_model(
    name: str,
    *,
    pretrained: bool | str = False,
    num_classes: int | None = None,
    architecture: str | None = None,
    **arguments: Any,
) -> Network:
    """Builds a model, with fresh parameters or with published weights, in evaluation mode.

    >>> model = create_model("efficientnetv2-s", pretrained="imagenet21k-ft1k")  # doctest: +SKIP
    >>> create_model("efficientnetv2-tiny", num_classes=10).spec.eval_size
    32

    With weights, the model computes what they were trained for: it has their padding, epsilon and
    preprocessing, which ``model.spec`` tells, and it is made for their image size.

    Args:
        name: One of ``list_models()``, for example ``efficientnetv2-s``.
        pretrained: The weights. True takes those that timm takes for this network, in a format that
            a bare install reads. A text is the second part of a name in ``list_pretrained()``, for
            example ``imagenet21k-ft1k``, or anything that ``load_weights`` takes. Files that are
            not on this machine are fetched. False gives fresh parameters.
        num_classes: The number of classes. If the weights have another number, the classifier is a
            fresh one. 0 leaves it out. None means that of the weights, or 1000 without weights.
        architecture: timm's name of the weights' network, as for ``load_weights``.
        **arguments: Other arguments of ``effnetv2_jax.models.create_model``: ``dtype``,
            ``axis_name``, ``bn_group_size``, ``remat``, ``scan_blocks``, ``rngs``, and fields of
            the spec such as ``survival_prob=1.0``.

    Returns:
        The Flax NNX module.

    Raises:
        UsageError: If a name or an argument is unknown; if the weights cannot be fetched or read,
            or do not fit; or if the arguments ask for another computation than that of the weights.
    """
    if not pretrained:
        num_classes = 1000 if num_classes is None else num_classes
        return models.create_model(name, num_classes=num_classes, **arguments)
    weights = read_weights(
        find_pretrained(name, pretrained),
        name,
        architecture=architecture,
        preprocessing=arguments.get("preprocessing"),
    )
    fields = dict(vars(weights.spec))
    fields.pop("name")
    for field in family_of(weights.spec).as_trained:
        if field in arguments and arguments[field] != fields[field]:
            raise UsageError(
                f"{field} must be {fields[field]!r}, as {weights.origin} were trained, got "
                f"{arguments[field]!r}"
            )
    num_classes = weights.num_classes if num_classes is None else num_classes
    model = models.create_model(name, num_classes=num_classes, **(fields | arguments))
    spec = model.spec
    put(weights, model)
    model.spec = spec
    return model


def save_pretrained(
    model: Network | Weights,
    folder: str | pathlib.Path,
    *,
    class_names: tuple[str, ...] | None = None,
) -> None:
    """Writes a model as a folder that the Hugging Face Hub expects and timm loads.

    The folder has ``model.safetensors`` with timm's names of tensors, ``config.json`` with the
    network and its images, and a ``README.md`` that the Hub shows. ``load_model(folder)`` reads it
    too. It appears whole, or not at all.

    >>> save_pretrained(model, "my-model", class_names=("cat", "dog"))  # doctest: +SKIP

    timm resizes with antialiasing always. Networks that were trained without it are a little off in
    timm if it prepares the images.

    Args:
        model: A model, or the result of ``read_weights``.
        folder: The folder, which must not exist.
        class_names: The names of the classes in the order of the labels, of a model's weights.

    Raises:
        UsageError: If timm has no network that computes the same, or the folder exists already or
            cannot be written.
    """
    weights = model if isinstance(model, Weights) else as_weights(model, class_names)
    spec, folder = weights.spec, local_path(folder)
    dialect = get_dialect(family_of(spec), "timm")
    architecture = dialect.names.their_model(spec)
    if architecture is None:
        trained = (f"{x} {getattr(spec, x)}" for x in family_of(spec).as_trained)
        raise UsageError(
            f"timm has no network that computes as {spec.name} with {', '.join(trained)} at "
            f"{spec.eval_size} px, so it could not load it: save_weights writes any network"
        )
    if folder.exists():
        raise UsageError(f"{str(folder)!r} exists already: choose another folder")
    config = _config(weights, architecture, dialect)
    temporary = unnamed(folder)
    try:
        temporary.mkdir(parents=True)
        save_weights(weights, temporary / IN_REPOSITORIES[0], naming="timm")
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (temporary / "README.md").write_text(_card(weights, architecture))
        temporary.rename(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise UsageError(f"{str(folder)!r} cannot be written: {error}") from error
        raise


def _config(weights: Weights, architecture: str, dialect: Dialect) -> Mapping[str, Any]:
    """Returns the fields that timm reads."""
    spec, images = weights.spec, get_preprocessing(weights.spec.preprocessing)
    tensors = layout.tensors(spec, 1)
    places = dialect.places(spec, 1)
    first = next(name for name, tensor in tensors.items() if tensor.role == "conv")
    mode, resized = images.evaluation(spec.eval_size)
    fixed = family_of(spec).positions is not None
    sizes = {"input_size": spec.eval_size if fixed else spec.train_size}
    if not fixed:
        sizes["test_input_size"] = spec.eval_size
    return {
        "architecture": architecture,
        "num_classes": weights.num_classes,
        "num_features": tensors[f"{CLASSIFIER}.kernel"].shape[0],
        **({"label_names": list(weights.class_names)} if weights.class_names else {}),
        "pretrained_cfg": {
            **{name: [3, size, size] for name, size in sizes.items()},
            "fixed_input_size": fixed,
            "interpolation": images.interpolation,
            "crop_pct": images.crop or _crop(spec.eval_size, resized),
            "crop_mode": mode,
            "mean": [x / 255 for x in images.mean],
            "std": [x / 255 for x in images.std],
            "num_classes": weights.num_classes,
            "first_conv": places[first].name.removesuffix(".weight"),
            "classifier": places[f"{CLASSIFIER}.bias"].name.removesuffix(".bias"),
        },
    }


def _crop(image_size: int, resized: int) -> float:
    """Returns the shortest fraction with which timm resizes to ``resized`` px."""
    # timm resizes to ⌊size / crop⌋, and would round some exact fractions down.
    exact = image_size / (resized + 1e-6)
    rounded = (round(exact, digits) for digits in range(1, 17))
    return next(x for x in rounded if math.floor(image_size / x) == resized)


def _card(weights: Weights, architecture: str) -> str:
    return f"""---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- effnetv2_jax
---
# {architecture}

{weights.spec.name} with {weights.num_classes} classes, from {weights.origin}.

```python
import timm
model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True)

from effnetv2_jax import load_model
model, loaded = load_model("hf://OWNER/NAME")
```
"""
