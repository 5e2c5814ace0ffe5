"""The way from a config to a run, and what a workdir remembers of it.

ConfigDicts end here: everything below takes plain arguments.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import pathlib
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from absl import flags, logging
from flax import nnx

from effnetv2_jax import __version__, progressive
from effnetv2_jax.data import images, pipeline
from effnetv2_jax.data.sources import Source
from effnetv2_jax.data.sources import registry as sources
from effnetv2_jax.models import Network, abstract_model, create_model, get_spec
from effnetv2_jax.models.layers import device_groups
from effnetv2_jax.preprocessing import Preprocessing, get_preprocessing
from effnetv2_jax.runtime import caches as compile_cache
from effnetv2_jax.runtime import cli, hosts
from effnetv2_jax.runtime.errors import UsageError, unknown_name
from effnetv2_jax.runtime.files import write_atomically
from effnetv2_jax.training import evaluation, losses, optimizers, step
from effnetv2_jax.training.mesh import (
    AXES,
    Batch,
    abstract_batch,
    check_batch_size,
    check_within_slices,
    make_mesh,
)
from effnetv2_jax.training.state import Apply, TrainState, create_state, functional
from effnetv2_jax.training.survival.checkpoint import read_record
from effnetv2_jax.weights import read_weights
from effnetv2_jax.weights.description import AS_TRAINED
from effnetv2_jax.weights.load import put

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

CONFIG_FILE = "config.json"
CLASS_NAMES_FILE = "class_names.txt"

COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address",
    None,
    "HOST:PORT of process 0, where the processes of one run meet. On Cloud TPU and in Slurm none "
    "of these three flags is needed.",
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Of the run; 1 runs alone, whatever the environment says."
)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Of this process, from 0.")

# The least that a field may be, where no part of the library below would notice.
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
# What may differ between two starts in the same workdir: it does not change what is computed.
FREE_FIELDS = re.compile(
    r"log_every_steps|max_bad_steps|stall_seconds|fsdp|model\.(remat|scan_blocks)|checkpoint\..*"
)
# What a run may compute other numbers with, to the last bit.
LIBRARIES = (
    "jax",
    "jaxlib",
    "libtpu",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tensorflow-cpu",
)


def run(main: Callable[[], None]) -> None:
    """Runs a program, as ``cli.run`` does, in a process that may be one of several."""

    def in_a_pod() -> None:
        hosts.start(COORDINATOR_ADDRESS.value, NUM_PROCESSES.value, PROCESS_ID.value)
        if not hosts.is_first():
            logging.set_verbosity(logging.WARNING)
        compile_cache.turn_on()
        main()

    cli.run(in_a_pod)


def loaded(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config of a --config flag; raises UsageError where its file could not be read."""
    try:
        config.to_dict()
    except OSError as error:
        raise UsageError(cli.unreadable_config(error)) from error
    return config


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that a config stands for, in the terms of the library.

    Attributes:
        name: of the model.
        source: the data set.
        preprocessing: the input family.
        stages: of the training.
        mesh: of all devices.
        apply: the model as a pure function.
        state_shapes: of the state.
        first_state: makes the one that training begins with: random, or of ``init_weights``.
        train_step: of (state, batch, scalars).
        eval_step: compiled once per shape.
        learning_rate: of (step) → rate.
        train_batches: of (stage, first step) → batches.
        batch_shapes: of (stage) → what they are on the mesh, those of all processes together.
        eval_batches: of (split, image size) → batches.
        examples: of (step) → the examples of its batch: their numbers in the split, and what a
            person needs to find them.
    """

    name: str
    source: Source
    preprocessing: Preprocessing
    stages: tuple[progressive.Stage, ...]
    mesh: jax.sharding.Mesh
    apply: Apply
    state_shapes: TrainState
    first_state: Callable[[], TrainState]
    train_step: step.TrainStep
    eval_step: evaluation.EvalStep
    learning_rate: optax.Schedule
    train_batches: Callable[[progressive.Stage, int], Iterator[pipeline.Batch]]
    batch_shapes: Callable[[progressive.Stage], Batch]
    eval_batches: Callable[[str, int], Iterator[pipeline.Batch]]
    examples: Callable[[int], list[tuple[int, str]]]


def build(config: ml_collections.ConfigDict) -> Run:
    """Turns a config into a run; raises UsageError for the first value that cannot be used."""
    mesh = make_mesh(fsdp=config.fsdp)
    _check(config, mesh)
    dtype = DTYPES[config.model.dtype]
    spec = get_spec(config.model.name)
    family = get_preprocessing(config.data.preprocessing or spec.preprocessing)
    # Both may write: a data set that is prepared, an index of its records.
    with hosts.first_alone("data"):
        source = sources.get_source(
            config.data.name, config.data.dir or None, holdout=config.data.holdout
        )
        num_examples = source.split(config.data.train_split).size
    stages = make_stages(config, num_examples)
    augmentation = make_augmentation(config)
    share = pipeline.Share(jax.process_index(), jax.process_count())
    optimizer, learning_rate = make_optimizer(config, num_examples, stages[-1].end_step)
    # What a config says of models in general, as far as this kind has it.
    overrides = {
        "bn_momentum": config.model.bn_momentum,
        "head_init_scale": config.model.head_init_scale,
        "survival_prob": config.model.survival_prob,
        # The only one that a ViT takes.
        "eval_size": config.eval_image_size,
    } | {name: value for name in AS_TRAINED if (value := config.model.get(name)) is not None}
    arguments: dict[str, Any] = {
        "num_classes": source.num_classes,
        "dtype": dtype,
        "axis_name": AXES,
        "bn_group_size": config.model.bn_group_size or None,
        "remat": config.model.remat,
        "scan_blocks": config.model.scan_blocks,
    } | {field: value for field, value in overrides.items() if field in vars(spec)}
    apply, *shapes = functional(abstract_model(config.model.name, **arguments))

    def first_state() -> TrainState:
        model = create_model(config.model.name, rngs=nnx.Rngs(config.seed), **arguments)
        if config.init_weights:
            begin_with(config.init_weights, model)
        _, params, batch_stats = functional(model)
        return create_state(params, batch_stats, optimizer)

    return Run(
        name=config.model.name,
        source=source,
        preprocessing=family,
        stages=stages,
        mesh=mesh,
        apply=apply,
        state_shapes=jax.eval_shape(functools.partial(create_state, optimizer=optimizer), *shapes),
        first_state=first_state,
        train_step=step.make_train_step(
            apply,
            optimizer,
            mesh=mesh,
            num_classes=source.num_classes,
            mean=family.mean,
            std=family.std,
            loss=config.loss,
            label_smoothing=config.label_smoothing,
            ema_decay=config.ema_decay,
            mixing=any(stage.mixup_alpha or stage.cutmix_alpha for stage in stages),
            seed=config.seed,
            dtype=dtype,
            reduce_dtype=DTYPES[config.reduce_dtype],
            accumulation_steps=config.accumulation_steps,
        ),
        eval_step=evaluation.make_eval_step(
            apply, mesh=mesh, mean=family.mean, std=family.std, dtype=dtype
        ),
        learning_rate=learning_rate,
        train_batches=lambda stage, first_step: pipeline.train_batches(
            source,
            config.data.train_split,
            stage,
            first_example=progressive.examples_before(stages, first_step),
            num_batches=stage.end_step - first_step,
            seed=config.seed,
            preprocessing=family,
            augmentation=augmentation,
            max_bad_fraction=config.data.max_bad_fraction,
            share=share,
        ),
        batch_shapes=lambda stage: abstract_batch(
            stage.image_size, stage.batch_size, source.label_shape, mesh
        ),
        eval_batches=lambda split, image_size: pipeline.eval_batches(
            source,
            split,
            image_size=image_size,
            batch_size=config.eval_batch_size,
            preprocessing=family,
            max_bad_fraction=config.data.max_bad_fraction,
            share=share,
        ),
        examples=lambda step: pipeline.examples_at(
            source.split(config.data.train_split),
            config.seed,
            first_example=progressive.examples_before(stages, step - 1),
            count=config.batch_size,
        ),
    )


def begin_with(init_weights: str, model: Network) -> None:
    """Puts weights into a new model, and says in the log what was loaded.

    Raises:
        UsageError: as ``load_weights``, and where they were trained with another padding or epsilon
            than the model has: the run's config has to remember that.
    """
    weights = read_weights(init_weights, model.spec)
    others = [
        f"--config.model.{name}={getattr(weights.spec, name)}"
        for name in AS_TRAINED
        if name in vars(model.spec) and getattr(weights.spec, name) != getattr(model.spec, name)
    ]
    if others:
        raise UsageError(
            f"init_weights {init_weights!r} were trained otherwise, set {' '.join(others)}"
        )
    logging.info("beginning with %s", put(weights, model))


def _check(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """What no part of the library below would notice by itself."""
    for name, value in (("model.dtype", config.model.dtype), ("reduce_dtype", config.reduce_dtype)):
        if value not in DTYPES:
            raise unknown_name(name, value, DTYPES)
    if config.loss not in losses.LOSSES:
        raise unknown_name("loss", config.loss, losses.LOSSES)
    if not 0 <= config.data.max_bad_fraction <= 1:
        raise UsageError(
            f"data.max_bad_fraction must be in 0 … 1, got {config.data.max_bad_fraction}"
        )
    flat = _flat(config.to_dict())
    for name, least in LEAST.items():
        if flat[name] < least:
            raise UsageError(f"{name} must be at least {least}, got {flat[name]}")
    for name in ("checkpoint.every_seconds", "stall_seconds"):
        if flat[name] <= 0:
            raise UsageError(f"{name} must be above 0, got {flat[name]}")
    check_batch_size("batch_size", config.batch_size, mesh, config.accumulation_steps)
    check_batch_size("eval_batch_size", config.eval_batch_size, mesh)
    groups = device_groups(mesh.size, config.model.bn_group_size or None)
    check_within_slices("model.bn_group_size", len(groups[0]), mesh.devices.flat)


def make_augmentation(config: ml_collections.ConfigDict) -> images.Augmentation:
    """What a config does to training images beside the stage's magnitude."""
    return images.Augmentation(
        name=config.data.augmentation,
        flip=config.data.flip,
        num_layers=config.data.randaugment_layers,
        translate_const=config.data.translate_const,
        cutout_const=config.data.cutout_const,
        area_range=tuple(config.data.area_range) or None,
    )


def make_stages(
    config: ml_collections.ConfigDict, num_examples: int
) -> tuple[progressive.Stage, ...]:
    """The stages of a config, for a training split of ``num_examples``."""
    if config.epochs <= 0:
        raise UsageError(f"epochs must be above 0, got {config.epochs}")
    schedule = config.schedule
    return progressive.make_stages(
        schedule.name,
        total_steps=int(config.epochs * num_examples / config.batch_size),
        num_stages=schedule.num_stages,
        batch_size=config.batch_size,
        image_size=tuple(schedule.image_size),
        randaugment_magnitude=tuple(schedule.randaugment_magnitude),
        mixup_alpha=tuple(schedule.mixup_alpha),
        cutmix_alpha=tuple(schedule.cutmix_alpha),
        dropout_rate=tuple(schedule.dropout_rate),
        seed=config.seed,
        size_step=schedule.size_step,
    )


def make_optimizer(
    config: ml_collections.ConfigDict, num_examples: int, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and the learning rate of a config."""
    steps_per_epoch = num_examples / config.batch_size
    optimizer = config.optimizer
    learning_rate = optimizers.make_schedule(
        optimizer.decay,
        peak=optimizer.learning_rate,
        total_steps=total_steps,
        warmup_steps=int(optimizer.warmup_epochs * steps_per_epoch),
        decay_steps=optimizer.decay_epochs * steps_per_epoch,
        decay_rate=optimizer.decay_rate,
    )
    return (
        optimizers.make_optimizer(
            optimizer.name,
            learning_rate,
            weight_decay=optimizer.weight_decay,
            clip_norm=optimizer.clip_norm,
        ),
        learning_rate,
    )


def agree(config: ml_collections.ConfigDict, **others: object) -> None:
    """Raises UsageError, in every process, where these differ between the processes of the run."""
    hosts.agree(_flat(config.to_dict()) | others)


def about(config: ml_collections.ConfigDict, source: Source) -> dict[str, Any]:
    """What a run is, as JSON can hold it: ``config``, ``class_names`` and ``versions``."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "config": json.loads(json.dumps(config.to_dict())),
        "class_names": list(source.class_names),
        "versions": versions | {"effnetv2_jax": __version__},
    }


def claim_workdir(workdir: str, this: Mapping[str, Any]) -> pathlib.Path:
    """Makes the workdir, and writes there what the run is, or checks that it is the run there.

    Process 0 writes; the others check that they see the same folder.

    Args:
        workdir: of the run.
        this: from ``about``.

    Raises:
        UsageError: where the workdir cannot be written, or holds another run.
    """
    path = pathlib.Path(workdir).expanduser().resolve()
    with hosts.first_alone("workdir"):
        if hosts.is_first():
            try:
                path.mkdir(parents=True, exist_ok=True)
                _refuse_other_run(workdir, this)
                _write_missing(path, this)
            except OSError as error:
                raise UsageError(
                    f"workdir {workdir!r} cannot be written: {error.strerror}"
                ) from error
        elif not (path / CONFIG_FILE).exists():
            raise UsageError(
                f"workdir {workdir!r} must be a folder that all processes share: process "
                f"{jax.process_index()} does not find there what process 0 wrote"
            )
    return path


def _write_missing(path: pathlib.Path, this: Mapping[str, Any]) -> None:
    config, names = path / CONFIG_FILE, path / CLASS_NAMES_FILE
    if not names.exists():
        text = "".join(f"{name}\n" for name in this["class_names"])
        write_atomically(names, text, errors="surrogateescape")
    # Last: where it is, all is.
    if not config.exists():
        write_atomically(config, json.dumps(this["config"], indent=2) + "\n")


def _refuse_other_run(workdir: str, this: Mapping[str, Any]) -> None:
    there = {name: this[name] if x is None else x for name, x in _read_run(workdir).items()}
    ours, theirs = _flat(this["config"]), _flat(there["config"])
    different = [
        f"{name} (there {theirs.get(name)!r}, now {ours.get(name)!r})"
        for name in sorted(ours.keys() | theirs.keys())
        if not FREE_FIELDS.fullmatch(name) and ours.get(name) != theirs.get(name)
    ]
    if different:
        raise UsageError(
            f"workdir {workdir!r} holds a run with another config: {', '.join(different)}; "
            "use the same config to resume it, or another workdir"
        )
    if this["class_names"] != there["class_names"]:
        here, now = len(there["class_names"]), len(this["class_names"])
        counts = f" ({here} there, {now} now)" if here != now else ""
        raise UsageError(
            f"workdir {workdir!r} holds a run on other classes than those of "
            f"{this['config']['data']['name']} now{counts}, {CLASS_NAMES_FILE} has the run's: "
            "restore the data, or use another workdir"
        )


def _read_run(workdir: str | pathlib.Path) -> dict[str, Any]:
    """The ``config`` and ``class_names`` of the run in a workdir; None for what is not there.

    Files that got lost are made up for by what the newest checkpoint remembers.
    """
    path = pathlib.Path(workdir).expanduser().resolve()
    config = names = None
    with contextlib.suppress(OSError, ValueError):
        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    with contextlib.suppress(OSError):
        text = (path / CLASS_NAMES_FILE).read_text(encoding="utf-8", errors="surrogateescape")
        names = text.split("\n")[:-1]
    record = (read_record(path) if config is None or names is None else None) or {}
    return {
        "config": record.get("config") if config is None else config,
        "class_names": record.get("class_names") if names is None else names,
    }


def read_config(workdir: str | pathlib.Path) -> ml_collections.ConfigDict:
    """The config of the run in a workdir; raises UsageError where there is none."""
    config = _read_run(workdir)["config"]
    if config is None:
        raise UsageError(
            f"workdir {str(workdir)!r} holds no run: config.json is missing or broken there"
        )
    return ml_collections.ConfigDict(config)


def _flat(tree: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} → {"a.b": 1}, with tuples as the lists that JSON makes of them."""
    flat: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
