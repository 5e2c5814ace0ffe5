"""Turns a ConfigDict into a ``Run``; ConfigDicts end here, and the library takes plain values."""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import optax
from absl import logging

from effnetv2_jax import progressive
from effnetv2_jax.data import images, sampling
from effnetv2_jax.data.sources import Source, Split, digest, registry
from effnetv2_jax.models import get_spec
from effnetv2_jax.models.layers import device_groups
from effnetv2_jax.models.registry import NUMBERS as MODEL_NUMBERS
from effnetv2_jax.models.registry import family_of
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime import hosts
from effnetv2_jax.runtime.errors import (
    LARGEST_SIDE,
    LARGEST_WHOLE,
    Number,
    UsageError,
    check_numbers,
    unknown_name,
)
from effnetv2_jax.runtime.recipe import flatten
from effnetv2_jax.runtime.run import Run, Scorer
from effnetv2_jax.training import class_weights, optimizers
from effnetv2_jax.training.build import AUTO, DTYPES, build_training
from effnetv2_jax.training.evaluation import WEIGHTS, Evaluation
from effnetv2_jax.training.losses import LOSSES
from effnetv2_jax.training.mesh import (
    abstract_batch,
    check_batch_size,
    check_within_slices,
    make_mesh,
)

NUMBERS = {
    # JAX takes a seed modulo 2³².
    "seed": Number(most=2**32 - 1, whole=True),
    "model.bn_momentum": MODEL_NUMBERS["bn_momentum"],
    "model.bn_epsilon": MODEL_NUMBERS["bn_epsilon"],
    "model.norm_epsilon": MODEL_NUMBERS["norm_epsilon"],
    "model.head_init_scale": MODEL_NUMBERS["head_init_scale"],
    "model.survival_prob": MODEL_NUMBERS["survival_prob"],
    "model.bn_group_size": Number(whole=True),
    "data.holdout": Number(above=0, below=1),
    "data.max_bad_fraction": Number(most=1),
    "data.randaugment_layers": Number(most=100, whole=True),
    "data.translate_const": Number(most=LARGEST_SIDE, optional=True),
    "data.cutout_const": Number(most=LARGEST_SIDE, optional=True),
    "data.area_range": Number(
        above=0, most=1, names=("smallest", "largest"), rising=True, optional=True
    ),
    "epochs": Number(above=0),
    "batch_size": progressive.NUMBERS["batch_size"],
    "accumulation_steps": Number(least=1, whole=True),
    "fsdp": Number(least=1, whole=True),
    **{
        f"schedule.{name}": rule
        for name, rule in progressive.NUMBERS.items()
        if name != "batch_size"
    },
    **{
        f"optimizer.{name.replace('_steps', '_epochs')}": dataclasses.replace(rule, whole=False)
        for name, rule in optimizers.NUMBERS.items()
    },
    "label_smoothing": Number(most=1),
    "ema_decay": Number(most=1),
    "eval_image_size": Number(least=1, most=LARGEST_SIDE, whole=True),
    "eval_batch_size": progressive.NUMBERS["batch_size"],
    "log_every_steps": Number(least=1, whole=True),
    "checkpoint.every_steps": Number(least=1, whole=True),
    # The largest time that Python can wait for is about 292 years.
    "checkpoint.every_seconds": Number(above=0, most=10**9),
    "checkpoint.keep_newest": Number(least=1, whole=True),
    "checkpoint.keep_every_steps": Number(whole=True),
    "checkpoint.keep_best": Number(whole=True),
    "max_bad_steps": Number(least=1, whole=True),
    "stall_seconds": Number(above=0, most=10**9),
}
"""The fields of a config that are numbers, and which ones they may be."""

EVAL_NUMBERS = {
    "image_size": NUMBERS["eval_image_size"],
    "batch_size": NUMBERS["eval_batch_size"],
    "every_steps": Number(whole=True),
}
EVAL_FIELDS = tuple(x.name for x in dataclasses.fields(Evaluation) if x.name != "name")


def build(config: ml_collections.ConfigDict) -> Run:
    """Builds the run that a config describes.

    Raises:
        UsageError: For the first value that cannot be used.
    """
    check_numbers(NUMBERS, flatten(config.to_dict()))
    mesh = make_mesh(fsdp=config.fsdp)
    evaluations = make_evaluations(config)
    _check(config, mesh, evaluations)
    train_split = config.data.train_split
    sources = _open(config, evaluations)
    source = sources[config.data.name]
    if source.num_classes < 2:
        raise UsageError(
            f"{source.name} has a single class, {source.class_names[0]!r}: there is nothing to "
            "learn with fewer than two"
        )
    arguments = training_arguments(config, source.split(train_split).size)
    arguments["training"]["class_weights"] = class_weights.resolve(
        arguments["training"]["class_weights"],
        source.class_names,
        lambda: sampling.count_classes(source, train_split),
    )
    if arguments["training"]["class_weights"] and config.data.sampler == "balanced":
        logging.warning("class_weights weigh the classes that data.sampler has balanced already")
    # Data that cannot be sampled so say it now, not at the first batch.
    sampling.make_order(source, train_split, config.seed, config.data.sampler)
    optimizer, learning_rate = make_optimizer(arguments)
    training = build_training(
        mesh=mesh,
        optimizer=optimizer,
        num_classes=source.num_classes,
        remat=config.model.remat,
        scan_blocks=config.model.scan_blocks,
        **arguments["training"],
    )
    for evaluation in evaluations:
        if evaluation.image_size != config.eval_image_size:
            # A network that does not take this size says so now, not at the end of a stage.
            label_shape = sources[evaluation.data].label_shape
            size, batch_size = evaluation.image_size, evaluation.batch_size
            jax.eval_shape(
                training.eval_step,
                *evaluation.choose_weights(training.shapes),
                abstract_batch(size, batch_size, label_shape, mesh),
            )
    return Run(
        name=config.model.name,
        training=training,
        learning_rate=learning_rate,
        source=source,
        train_split=train_split,
        sources=sources,
        evaluations=evaluations,
        preprocessing=arguments["training"]["preprocessing"],
        max_bad_fraction=config.data.max_bad_fraction,
        **arguments["run"],
    )


def training_arguments(
    config: ml_collections.ConfigDict, num_examples: int
) -> dict[str, dict[str, Any]]:
    """Returns all that a run's numbers depend on, except the data and the devices.

    Training gets these arguments and no field of the config, so two configs for which they are
    equal train alike. Arguments that only change how fast it computes are not among them.

    Args:
        config: The config.
        num_examples: The number of examples of the training split.

    Returns:
        Keyword arguments of ``make_learning_rate``, ``make_optimizer`` (without the learning rate),
        ``build_training`` and ``Run``, under ``learning_rate``, ``optimizer``, ``training`` and
        ``run``. They can be compared with ``==``.

    Raises:
        UsageError: For the first value that cannot be used.
    """
    spec = get_spec(config.model.name)
    stages = make_stages(config, num_examples)
    steps_per_epoch = num_examples / config.batch_size
    optimizer = config.optimizer
    warmup_steps = int(optimizer.warmup_epochs * steps_per_epoch)
    if warmup_steps > LARGEST_WHOLE:
        raise UsageError(
            f"optimizer.warmup_epochs must be at most {LARGEST_WHOLE} steps long, got "
            f"{optimizer.warmup_epochs:g}"
        )
    # A config has fields for all kinds of models; each model takes those that its spec has.
    fields = {
        "bn_momentum": config.model.bn_momentum,
        "head_init_scale": config.model.head_init_scale,
        "survival_prob": config.model.survival_prob,
    } | {
        name: value
        for name in family_of(spec).as_trained
        if (value := config.model.get(name)) is not None
    }
    # A ViT is made for one size. Others take any, and evaluation's is none of theirs.
    if family_of(spec).positions is not None:
        fields["eval_size"] = config.eval_image_size
    return {
        "learning_rate": {
            "schedule": optimizer.learning_rate_schedule,
            "peak": optimizer.learning_rate,
            "total_steps": stages[-1].end_step,
            "warmup_steps": warmup_steps,
            "decay_steps": optimizer.decay_epochs * steps_per_epoch,
            "decay_rate": optimizer.decay_rate,
        },
        "optimizer": {
            "name": optimizer.name,
            "weight_decay": optimizer.weight_decay,
            "clip_norm": optimizer.clip_norm,
            "options": optimizer.options.to_dict(),
        },
        "training": {
            "model": config.model.name,
            "preprocessing": dataclasses.replace(
                get_preprocessing(config.data.preprocessing or spec.preprocessing),
                exif_orientation=config.data.exif_orientation,
            ),
            "dtype": config.model.dtype,
            "reduce_dtype": config.reduce_dtype,
            "loss": config.loss,
            "label_smoothing": config.label_smoothing,
            "class_weights": class_weights.normalized(config.class_weights),
            "ema_decay": config.ema_decay,
            "mixing": any(stage.mixup_alpha or stage.cutmix_alpha for stage in stages),
            "accumulation_steps": config.accumulation_steps,
            "bn_group_size": config.model.bn_group_size or None,
            "seed": config.seed,
            "spec_fields": {name: value for name, value in fields.items() if name in vars(spec)},
        },
        "run": {
            "stages": stages,
            "augmentation": images.Augmentation(
                name=config.data.augmentation,
                flip=config.data.flip,
                num_layers=config.data.randaugment_layers,
                translate_const=config.data.translate_const,
                cutout_const=config.data.cutout_const,
                area_range=tuple(config.data.area_range) or None,
            ),
            "sampler": config.data.sampler,
            "init_weights": config.init_weights,
            "init_architecture": config.init_architecture,
            "seed": config.seed,
        },
    }


def make_optimizer(
    arguments: Mapping[str, Mapping[str, Any]],
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimizer and the learning rate for ``training_arguments``."""
    learning_rate = optimizers.make_learning_rate(**arguments["learning_rate"])
    return optimizers.make_optimizer(
        learning_rate=learning_rate, **arguments["optimizer"]
    ), learning_rate


def build_scorer(
    config: ml_collections.ConfigDict,
    evaluation: Evaluation,
    class_names: Sequence[str] | None,
) -> Scorer:
    """Builds what one evaluation needs, on any number of devices; training data are not touched.

    Args:
        config: The config of the run.
        evaluation: The evaluation.
        class_names: The classes that the run was trained on. None means those of its training data,
            which are then opened.

    Raises:
        UsageError: For the first value that cannot be used.
    """
    sources = _open(config, (evaluation,), class_names)
    # As if an epoch were one step and a stage one epoch: nothing here depends on training's steps.
    epochs = {"epochs": config.schedule.num_stages}
    arguments = training_arguments(
        ml_collections.ConfigDict(config.to_dict() | epochs), config.batch_size
    )["training"]
    training = build_training(
        mesh=make_mesh(),
        optimizer=optax.identity(),
        num_classes=sources[evaluation.data].num_classes,
        **{**arguments, "bn_group_size": None, "class_weights": None},
    )
    return Scorer(
        name=config.model.name,
        training=training,
        sources=sources,
        preprocessing=arguments["preprocessing"],
        max_bad_fraction=config.data.max_bad_fraction,
    )


def _open(
    config: ml_collections.ConfigDict,
    evaluations: Sequence[Evaluation],
    class_names: Sequence[str] | None = None,
) -> dict[str, Source]:
    """Opens the data sets of evaluations by name, and that of the training if it is needed.

    Args:
        config: The config.
        evaluations: The evaluations, whose data must have the classes of the training.
        class_names: The classes of the training. None takes them from its data.

    Raises:
        UsageError: If one cannot be opened, has other classes, or differs between the processes.
    """
    sources: dict[str, Source] = {}
    opened = {}
    # This may write: a data set that has to be prepared, an index of its records.
    with hosts.first_alone("data"):
        open_source = functools.partial(
            registry.get_source, data_dir=config.data.dir or None, holdout=config.data.holdout
        )
        if class_names is None:
            name, split = config.data.name, config.data.train_split
            sources[name] = open_source(name)
            opened[f"{split} of {name}"] = _split("data.train_split", sources[name], split)
            class_names = sources[name].class_names
        for evaluation in evaluations:
            name, split = evaluation.data, evaluation.split
            try:
                if name not in sources:
                    # A folder gets the labels of the training.
                    sources[name] = open_source(name, class_names=class_names)
            except UsageError as error:
                raise UsageError(f"evals.{evaluation.name}: {error}") from error
            is_default = split == config.data.eval_split
            field = "data.eval_split" if is_default else f"evals.{evaluation.name}.split"
            opened[f"{split} of {name}"] = _split(field, sources[name], split)
            if sources[name].num_classes != len(class_names):
                raise UsageError(
                    f"evals.{evaluation.name}.data must have the {len(class_names)} classes of "
                    f"{config.data.name}, {name} has {sources[name].num_classes}"
                )
    if jax.process_count() > 1:
        # Otherwise they would make other numbers of steps, and wait for each other for ever.
        facts: dict[str, object] = {}
        for name, source in sources.items():
            names = digest(map(os.fsencode, source.class_names))
            facts[f"classes of {name}"] = f"{source.num_classes}, names {names}"
        for name, split in opened.items():
            facts |= {f"{fact} of split {name}": x for fact, x in split.identity().items()}
        hosts.agree(facts, "the data")
    return sources


def _split(field: str, source: Source, split: str) -> Split:
    """Returns a split; an error names the field that asks for it."""
    try:
        return source.split(split)
    except UsageError as error:
        raise UsageError(f"{field}: {error}") from error


def agree(config: ml_collections.ConfigDict, **others: object) -> None:
    """Raises UsageError, in every process, if the processes of a run have different values."""
    hosts.agree(flatten(config.to_dict()) | others)


def make_stages(
    config: ml_collections.ConfigDict, num_examples: int
) -> tuple[progressive.Stage, ...]:
    """Returns the stages of a config, for a training split of ``num_examples``."""
    num_stages = config.schedule.num_stages
    total_steps = int(config.epochs * num_examples / config.batch_size)
    run = f"{config.epochs:g} epochs of {num_examples} examples in batches of batch_size"
    if total_steps > LARGEST_WHOLE:
        raise UsageError(
            f"{run} {config.batch_size} are {total_steps:.3g} steps, at most {LARGEST_WHOLE} are "
            "allowed: choose fewer epochs"
        )
    if total_steps < num_stages:
        largest = int(config.epochs * num_examples / num_stages)
        raise UsageError(
            f"{run} {config.batch_size} are {total_steps} steps, and each of the "
            f"{num_stages} stages (schedule.num_stages) needs at least one: choose more epochs"
            + (f", or a batch_size of at most {largest}" if largest else "")
        )
    schedule: dict[str, Any] = {
        # A config that was read from JSON has lists.
        name: value if isinstance(value, str | int | float) else tuple(value)
        for name, value in config.schedule.items()
    }
    return progressive.make_stages(
        schedule.pop("name"),
        total_steps=total_steps,
        batch_size=config.batch_size,
        seed=config.seed,
        **schedule,
    )


def make_evaluations(config: ml_collections.ConfigDict) -> tuple[Evaluation, ...]:
    """Returns the evaluations of a config: ``eval`` first, then the others by name.

    Raises:
        UsageError: For a name, a field or a value that cannot be used.
    """
    defaults: dict[str, Any] = {
        "data": config.data.name,
        "split": config.data.eval_split,
        "image_size": config.eval_image_size,
        "batch_size": config.eval_batch_size,
    }
    evaluations = []
    for name, fields in sorted(config.evals.to_dict().items(), key=lambda x: (x[0] != "eval", x)):
        if not re.fullmatch(r"\w+", name) or name == "train":
            raise UsageError(
                f"the name of an evaluation must be letters, digits and underscores and not "
                f"'train', got {name!r}"
            )
        if not isinstance(fields, dict):
            raise UsageError(f"evals.{name} must be a dictionary of fields, got {fields!r}")
        for field, value in fields.items():
            if field not in EVAL_FIELDS:
                raise unknown_name(f"field of evals.{name}", field, EVAL_FIELDS)
            if field not in EVAL_NUMBERS and not isinstance(value, str):
                raise UsageError(f"evals.{name}.{field} must be text, got {value!r}")
        check_numbers(EVAL_NUMBERS, fields, f"evals.{name}.")
        evaluation = Evaluation(name, **(defaults | fields))
        if evaluation.weights not in WEIGHTS:
            raise unknown_name(f"evals.{name}.weights", evaluation.weights, WEIGHTS)
        evaluations.append(evaluation)
    return tuple(evaluations)


def _check(
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, evaluations: tuple[Evaluation, ...]
) -> None:
    """Raises UsageError for values that no part of the library would notice by itself."""
    flat = flatten(config.to_dict())
    tables: dict[str, Any] = {
        "model.dtype": (AUTO, *DTYPES),
        "reduce_dtype": DTYPES,
        "loss": LOSSES,
        "data.sampler": sampling.SAMPLERS,
    }
    for name, table in tables.items():
        if flat[name] not in table:
            raise unknown_name(name, flat[name], table)
    check_batch_size("batch_size", config.batch_size, mesh, config.accumulation_steps)
    check_batch_size("eval_batch_size", config.eval_batch_size, mesh)
    for evaluation in evaluations:
        check_batch_size(f"evals.{evaluation.name}.batch_size", evaluation.batch_size, mesh)
    groups = device_groups(mesh.size, config.model.bn_group_size or None)
    check_within_slices("model.bn_group_size", len(groups[0]), mesh.devices.flat)
