"""Turns a ConfigDict into a ``Run``; ConfigDicts end here, and the library takes plain values."""

import dataclasses
import re
from typing import Any

import jax
import ml_collections
import optax

from effnetv2_jax import progressive
from effnetv2_jax.data import images
from effnetv2_jax.data.sources import registry
from effnetv2_jax.models import get_spec
from effnetv2_jax.models.layers import device_groups
from effnetv2_jax.models.registry import family_of
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime import hosts
from effnetv2_jax.runtime.errors import UsageError, unknown_name
from effnetv2_jax.runtime.recipe import flatten
from effnetv2_jax.runtime.run import Run
from effnetv2_jax.training import optimizers
from effnetv2_jax.training.build import DTYPES, build_training
from effnetv2_jax.training.evaluation import WEIGHTS, Evaluation
from effnetv2_jax.training.losses import LOSSES
from effnetv2_jax.training.mesh import (
    abstract_batch,
    check_batch_size,
    check_within_slices,
    make_mesh,
)

# The least value of fields that no part of the library checks by itself.
LEAST = {
    "log_every_steps": 1,
    "max_bad_steps": 1,
    "accumulation_steps": 1,
    "eval_image_size": 1,
    "checkpoint.every_steps": 1,
    "checkpoint.keep_newest": 1,
    "checkpoint.keep_every_steps": 0,
    "checkpoint.keep_best": 0,
}
EVAL_LEAST = {"image_size": 1, "batch_size": 1, "every_steps": 0}
EVAL_FIELDS = {x.name: x.type for x in dataclasses.fields(Evaluation) if x.name != "name"}


def build(config: ml_collections.ConfigDict) -> Run:
    """Builds the run that a config describes.

    Raises:
        UsageError: For the first value that cannot be used.
    """
    mesh = make_mesh(fsdp=config.fsdp)
    evaluations = make_evaluations(config)
    _check(config, mesh, evaluations)
    spec = get_spec(config.model.name)
    family = dataclasses.replace(
        get_preprocessing(config.data.preprocessing or spec.preprocessing),
        exif_orientation=config.data.exif_orientation,
    )
    # This may write: a data set that has to be prepared, an index of its records.
    with hosts.first_alone("data"):
        sources = {
            name: registry.get_source(name, config.data.dir or None, holdout=config.data.holdout)
            for name in dict.fromkeys([config.data.name, *(x.data for x in evaluations)])
        }
        source = sources[config.data.name]
        num_examples = source.split(config.data.train_split).size
        for evaluation in evaluations:
            sources[evaluation.data].split(evaluation.split)
    for evaluation in evaluations:
        other = sources[evaluation.data].num_classes
        if other != source.num_classes:
            raise UsageError(
                f"evals.{evaluation.name}.data must have the {source.num_classes} classes of "
                f"{source.name}, {evaluation.data} has {other}"
            )
    stages = make_stages(config, num_examples)
    augmentation = images.Augmentation(
        name=config.data.augmentation,
        flip=config.data.flip,
        num_layers=config.data.randaugment_layers,
        translate_const=config.data.translate_const,
        cutout_const=config.data.cutout_const,
        area_range=tuple(config.data.area_range) or None,
    )
    optimizer, learning_rate = make_optimizer(config, num_examples, stages[-1].end_step)
    # A config has fields for all kinds of models; each model takes those that its spec has.
    fields = {
        "bn_momentum": config.model.bn_momentum,
        "head_init_scale": config.model.head_init_scale,
        "survival_prob": config.model.survival_prob,
        # A ViT is made for one size, and takes only this field.
        "eval_size": config.eval_image_size,
    } | {
        name: value
        for name in family_of(spec).as_trained
        if (value := config.model.get(name)) is not None
    }
    training = build_training(
        config.model.name,
        mesh=mesh,
        optimizer=optimizer,
        num_classes=source.num_classes,
        preprocessing=family,
        dtype=config.model.dtype,
        reduce_dtype=config.reduce_dtype,
        loss=config.loss,
        label_smoothing=config.label_smoothing,
        ema_decay=config.ema_decay,
        mixing=any(stage.mixup_alpha or stage.cutmix_alpha for stage in stages),
        accumulation_steps=config.accumulation_steps,
        bn_group_size=config.model.bn_group_size or None,
        remat=config.model.remat,
        scan_blocks=config.model.scan_blocks,
        seed=config.seed,
        spec_fields={name: value for name, value in fields.items() if name in vars(spec)},
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
        stages=stages,
        learning_rate=learning_rate,
        source=source,
        train_split=config.data.train_split,
        sources=sources,
        evaluations=evaluations,
        preprocessing=family,
        augmentation=augmentation,
        max_bad_fraction=config.data.max_bad_fraction,
        init_weights=config.init_weights,
        seed=config.seed,
    )


def agree(config: ml_collections.ConfigDict, **others: object) -> None:
    """Raises UsageError, in every process, if the processes of a run have different values."""
    hosts.agree(flatten(config.to_dict()) | others)


def make_stages(
    config: ml_collections.ConfigDict, num_examples: int
) -> tuple[progressive.Stage, ...]:
    """Returns the stages of a config, for a training split of ``num_examples``."""
    if config.epochs <= 0:
        raise UsageError(f"epochs must be above 0, got {config.epochs}")
    schedule: dict[str, Any] = {
        # A config that was read from JSON has lists.
        name: value if isinstance(value, str | int | float) else tuple(value)
        for name, value in config.schedule.items()
    }
    return progressive.make_stages(
        schedule.pop("name"),
        total_steps=int(config.epochs * num_examples / config.batch_size),
        batch_size=config.batch_size,
        seed=config.seed,
        **schedule,
    )


def make_optimizer(
    config: ml_collections.ConfigDict, num_examples: int, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimizer and the learning rate of a config; epochs become steps."""
    steps_per_epoch = num_examples / config.batch_size
    optimizer = config.optimizer
    learning_rate = optimizers.make_learning_rate(
        optimizer.learning_rate_schedule,
        peak=optimizer.learning_rate,
        total_steps=total_steps,
        warmup_steps=int(optimizer.warmup_epochs * steps_per_epoch),
        decay_steps=optimizer.decay_epochs * steps_per_epoch,
        decay_rate=optimizer.decay_rate,
    )
    transformation = optimizers.make_optimizer(
        optimizer.name,
        learning_rate,
        weight_decay=optimizer.weight_decay,
        clip_norm=optimizer.clip_norm,
        options=optimizer.options.to_dict(),
    )
    return transformation, learning_rate


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
            if type(value) is not EVAL_FIELDS[field]:
                expected = "a whole number" if field in EVAL_LEAST else "text"
                raise UsageError(f"evals.{name}.{field} must be {expected}, got {value!r}")
            if field in EVAL_LEAST and value < (least := EVAL_LEAST[field]):
                raise UsageError(f"evals.{name}.{field} must be at least {least}, got {value}")
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
    tables: dict[str, Any] = {"model.dtype": DTYPES, "reduce_dtype": DTYPES, "loss": LOSSES}
    for name, table in tables.items():
        if flat[name] not in table:
            raise unknown_name(name, flat[name], table)
    if not 0 <= config.data.max_bad_fraction <= 1:
        raise UsageError(
            f"data.max_bad_fraction must be in 0 … 1, got {config.data.max_bad_fraction}"
        )
    for name, least in LEAST.items():
        if flat[name] < least:
            raise UsageError(f"{name} must be at least {least}, got {flat[name]}")
    for name in ("checkpoint.every_seconds", "stall_seconds"):
        if flat[name] <= 0:
            raise UsageError(f"{name} must be above 0, got {flat[name]}")
    check_batch_size("batch_size", config.batch_size, mesh, config.accumulation_steps)
    check_batch_size("eval_batch_size", config.eval_batch_size, mesh)
    for evaluation in evaluations:
        check_batch_size(f"evals.{evaluation.name}.batch_size", evaluation.batch_size, mesh)
    groups = device_groups(mesh.size, config.model.bn_group_size or None)
    check_within_slices("model.bn_group_size", len(groups[0]), mesh.devices.flat)
