"""What the programs share: one-sentence errors, flags, and the way from a config to a run.

ConfigDicts end here: everything below takes plain arguments.
"""

import dataclasses
import functools
import json
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
import jax.numpy as jnp
import ml_collections
import optax
from absl import app, flags, logging
from flax import nnx

from effnetv2_jax import hosts, progressive
from effnetv2_jax.data import images, pipeline, sources
from effnetv2_jax.data.source import Source
from effnetv2_jax.errors import UsageError, unknown_name
from effnetv2_jax.models import create_model, get_spec
from effnetv2_jax.models.layers import device_groups
from effnetv2_jax.preprocessing import Preprocessing, get_preprocessing
from effnetv2_jax.training import evaluation, losses, optimizers, step
from effnetv2_jax.training.mesh import AXES, check_batch_size, make_mesh
from effnetv2_jax.training.state import Apply, TrainState, create_state, functional

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

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

COUNTS = ("log_every_steps", "checkpoint_every_steps", "checkpoints_to_keep")
# What may differ between two starts in the same workdir: it does not change what is computed.
FREE_FIELDS = (*COUNTS, "fsdp", "model.remat")


def run(main: Callable[[], None]) -> None:
    """Parses flags and runs a program; what a user can cause ends in one sentence and exit code 2.

    ``--config`` files may do ``from configs import common`` from any folder.
    """
    root = str(pathlib.Path(__file__).resolve().parent.parent)
    if root not in sys.path:
        sys.path.append(root)

    def parse_flags(argv: list[str]) -> list[str]:
        # Besides absl's own errors, ml_collections lets these through: the first two for a field
        # that is not there, the others for a recipe that refuses its argument or does not load.
        try:
            rest = flags.FLAGS(argv)
        except (AttributeError, KeyError) as error:
            if _is_a_recipes_own(error):
                raise
            sys.exit(f"error: unknown config field {_one_line(error)}")
        except OSError as error:
            if _is_a_recipes_own(error):
                raise
            sys.exit(f"error: {_unreadable_config(error)}")
        except (flags.Error, TypeError, ValueError, ImportError) as error:
            sys.exit(f"error: {_one_line(error)}")
        if rest[1:]:
            sys.exit(f"error: unexpected argument {rest[1]!r}: every argument is a --flag")
        logging.set_verbosity(logging.INFO)
        logging.get_absl_handler().addFilter(_is_ours_or_serious)
        return rest

    def guarded(argv: list[str]) -> None:
        del argv
        try:
            hosts.start(COORDINATOR_ADDRESS.value, NUM_PROCESSES.value, PROCESS_ID.value)
            if not hosts.is_first():
                logging.set_verbosity(logging.WARNING)
            main()
        except UsageError as error:
            print(f"error: {_one_line(error)}", file=sys.stderr)
            _leave(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            # 128 + SIGINT, as shells count. An orderly exit would wait for a compilation that goes
            # on in the background.
            os._exit(130)
        except Exception:
            if not jax.distributed.is_initialized():
                raise
            traceback.print_exc()
            _leave(1)

    app.run(guarded, flags_parser=parse_flags)


def _leave(code: int) -> NoReturn:
    """Ends a run that failed, at once where there are other processes."""
    if jax.distributed.is_initialized():
        # An orderly exit would wait for the others, which may be waiting for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _is_ours_or_serious(record) -> bool:
    """A log is for the run; what these libraries say about themselves is left out."""
    if record.exc_info and isinstance(record.exc_info[1], KeyboardInterrupt):
        return False  # whoever interrupts a run knows that
    chatty = ("jax", "orbax", "tensorflow_datasets")
    return record.levelno > 20 or not any(f"/{name}/" in record.pathname for name in chatty)


def _one_line(error: BaseException) -> str:
    """The sentence in an exception of ours, of absl's or of ml_collections'."""
    if isinstance(error.args[0] if error.args else None, BaseException):
        return _one_line(error.args[0])
    # A KeyError's own str() would quote the text.
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    if "Traceback" in text:  # a recipe's own error, quoted whole
        text = [line for line in text.splitlines() if "Error: " in line][-1].partition("Error: ")[2]
    return " ".join(text.split()).replace("' Did you", "': did you")


def _is_a_recipes_own(error: BaseException) -> bool:
    """Whether a recipe raised it: somebody's code, who needs the traceback."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    flag_code = ("/absl/", "/ml_collections/", "<frozen importlib")
    return any(all(part not in frame.filename for part in flag_code) for frame in frames)


def _unreadable_config(error: OSError) -> str:
    # ml_collections wraps the system's error in sentences of its own; the name is at the end.
    return f"config file {str(error).rpartition(': ')[2]} does not exist or cannot be read"


def loaded(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config of a --config flag; raises UsageError where its file could not be read."""
    try:
        config.to_dict()
    except OSError as error:
        raise UsageError(_unreadable_config(error)) from error
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
        initial_state: makes the state before the first step; traceable.
        train_step: of (state, batch, scalars).
        eval_step: compiled once per shape.
        learning_rate: of (step) → rate.
        train_batches: of (stage, first step) → batches.
        eval_batches: of (split, image size) → batches.
    """

    name: str
    source: Source
    preprocessing: Preprocessing
    stages: tuple[progressive.Stage, ...]
    mesh: jax.sharding.Mesh
    apply: Apply
    initial_state: Callable[[], TrainState]
    train_step: step.TrainStep
    eval_step: evaluation.EvalStep
    learning_rate: optax.Schedule
    train_batches: Callable[[progressive.Stage, int], Iterator[pipeline.Batch]]
    eval_batches: Callable[[str, int], Iterator[pipeline.Batch]]


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
    make_model = functools.partial(
        create_model,
        config.model.name,
        num_classes=source.num_classes,
        dtype=dtype,
        axis_name=AXES,
        bn_group_size=config.model.bn_group_size or None,
        remat=config.model.remat,
        bn_momentum=config.model.bn_momentum,
        head_init_scale=config.model.head_init_scale,
        survival_prob=config.model.survival_prob,
    )
    apply, _, _ = functional(nnx.eval_shape(make_model))

    def initial_state() -> TrainState:
        _, params, batch_stats = functional(make_model(rngs=nnx.Rngs(config.seed)))
        return create_state(params, batch_stats, optimizer)

    return Run(
        name=config.model.name,
        source=source,
        preprocessing=family,
        stages=stages,
        mesh=mesh,
        apply=apply,
        initial_state=initial_state,
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
        eval_batches=lambda split, image_size: pipeline.eval_batches(
            source,
            split,
            image_size=image_size,
            batch_size=config.eval_batch_size,
            preprocessing=family,
            max_bad_fraction=config.data.max_bad_fraction,
            share=share,
        ),
    )


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
    for name in (*COUNTS, "accumulation_steps"):
        if config[name] < 1:
            raise UsageError(f"{name} must be at least 1, got {config[name]}")
    if config.eval_image_size < 1:
        raise UsageError(f"eval_image_size must be at least 1 px, got {config.eval_image_size}")
    check_batch_size("batch_size", config.batch_size, mesh, config.accumulation_steps)
    check_batch_size("eval_batch_size", config.eval_batch_size, mesh)
    device_groups(mesh.size, config.model.bn_group_size or None)


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


def claim_workdir(workdir: str, config: ml_collections.ConfigDict) -> pathlib.Path:
    """Makes the workdir and writes the config there, or checks that it is the one that is there.

    Process 0 writes; the others check that they see the same folder.

    Raises:
        UsageError: where the workdir cannot be written, or holds a run of another config.
    """
    path = pathlib.Path(workdir).expanduser().resolve()
    config_file = path / "config.json"
    with hosts.first_alone("workdir"):
        if hosts.is_first():
            try:
                path.mkdir(parents=True, exist_ok=True)
                if not config_file.exists():
                    config_file.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
            except OSError as error:
                raise UsageError(
                    f"workdir {workdir!r} cannot be written: {error.strerror}"
                ) from error
        elif not config_file.exists():
            raise UsageError(
                f"workdir {workdir!r} must be a folder that all processes share: process "
                f"{jax.process_index()} does not find there what process 0 wrote"
            )
        _check_config(workdir, config)
    return path


def _check_config(workdir: str, config: ml_collections.ConfigDict) -> None:
    ours, theirs = _flat(config.to_dict()), _flat(read_config(workdir).to_dict())
    different = [
        f"{name} (there {theirs.get(name)!r}, now {ours.get(name)!r})"
        for name in sorted(ours.keys() | theirs.keys())
        if name not in FREE_FIELDS and ours.get(name) != theirs.get(name)
    ]
    if different:
        raise UsageError(
            f"workdir {workdir!r} holds a run with another config: {', '.join(different)}; "
            "use the same config to resume it, or another workdir"
        )


def claim_class_names(workdir: pathlib.Path, source: Source) -> None:
    """Writes the names of the classes beside the checkpoints, or checks that they are the same.

    Args:
        workdir: from ``claim_workdir``.
        source: the data set; line n of ``class_names.txt`` is the name of label n − 1.

    Raises:
        UsageError: where the data set's classes are not those that the run began with.
    """
    file = workdir / "class_names.txt"
    names = "".join(f"{name}\n" for name in source.class_names)
    with hosts.first_alone("class names"):
        if hosts.is_first() and not file.exists():
            file.write_text(names, encoding="utf-8", errors="surrogateescape")
        if file.read_text(encoding="utf-8", errors="surrogateescape") != names:
            raise UsageError(
                f"workdir {str(workdir)!r} holds a run on other classes than those of "
                f"{source.name} now (class_names.txt has the run's): restore the data, or use "
                "another workdir"
            )


def read_config(workdir: str | pathlib.Path) -> ml_collections.ConfigDict:
    """The config of the run in a workdir; raises UsageError where there is none."""
    config_file = pathlib.Path(workdir).expanduser().resolve() / "config.json"
    try:
        return ml_collections.ConfigDict(json.loads(config_file.read_text()))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"workdir {str(workdir)!r} holds no run: config.json is missing or broken there"
        ) from error


def _flat(tree: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} → {"a.b": 1}, with tuples as the lists that JSON makes of them."""
    flat: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
