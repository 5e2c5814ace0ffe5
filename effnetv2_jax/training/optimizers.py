"""Learning-rate schedules and optimizers as in the official code, made of optax's."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from effnetv2_jax.runtime.errors import Number, UsageError, check_numbers, unknown_name

NUMBERS = {
    "learning_rate": Number(),
    "warmup_steps": Number(whole=True),
    "decay_steps": Number(above=0),
    "decay_rate": Number(above=0),
    "weight_decay": Number(),
    "clip_norm": Number(),
}
"""The arguments of this module's functions that are numbers, and which ones they may be."""
OPTION_NUMBERS = {
    "b1": Number(below=1),
    "b2": Number(below=1),
    "decay": Number(most=1),
    "momentum": Number(most=1, optional=True),
}
"""The options of optimizers that have an upper bound; the others are at least 0."""

# Functions of the peak, the number of steps of the run, decay_steps and decay_rate.
LEARNING_RATE_SCHEDULES: dict[str, Callable[[float, int, float, float], optax.Schedule]] = {
    "exponential": lambda peak, _, steps, rate: optax.exponential_decay(
        peak, steps, rate, staircase=True
    ),
    "cosine": lambda peak, total, *_: optax.cosine_decay_schedule(peak, total),
    "constant": lambda peak, *_: optax.constant_schedule(peak),
    # Hägele et al. 2024 (arXiv 2405.18392): the full rate, then a straight line to 0 at the end.
    "cooldown": lambda peak, total, steps, _: optax.linear_schedule(
        peak, 0.0, min(int(steps), total), total - min(int(steps), total)
    ),
}


def make_learning_rate(
    schedule: str,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int = 0,
    decay_steps: float = 1.0,
    decay_rate: float = 0.97,
) -> optax.Schedule:
    """Returns the learning rate as a function of the step: a linear warm-up from 0, then a decay.

    As in the official code, the decay counts from step 0 and not from the end of the warm-up.

    >>> rate = make_learning_rate("cosine", peak=0.1, total_steps=100, warmup_steps=10)
    >>> print(f"{rate(5):.2f} {rate(100):.2f}")
    0.05 0.00

    Args:
        schedule: A name in ``LEARNING_RATE_SCHEDULES``.
        peak: The learning rate that the warm-up reaches and the decay starts from.
        total_steps: The number of steps of the run, after which ``cosine`` and ``cooldown`` are 0.
        warmup_steps: The number of steps of the warm-up. 0 means no warm-up.
        decay_steps: For ``exponential``, the number of steps between two decays (the paper: 2.4
            epochs). For ``cooldown``, the number of steps of the fall to 0, at most all of them.
        decay_rate: For ``exponential``, the factor of a decay (the paper: 0.97).

    Raises:
        UsageError: For an unknown schedule, or a number that ``NUMBERS`` does not allow.
    """
    if schedule not in LEARNING_RATE_SCHEDULES:
        raise unknown_name("learning_rate_schedule", schedule, LEARNING_RATE_SCHEDULES)
    numbers = {"warmup_steps": warmup_steps, "decay_steps": decay_steps, "decay_rate": decay_rate}
    check_numbers(NUMBERS, numbers | {"learning_rate": peak})
    decayed = LEARNING_RATE_SCHEDULES[schedule](peak, total_steps, decay_steps, decay_rate)
    if warmup_steps == 0:
        return decayed
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return lambda step: jnp.where(step < warmup_steps, warmup(step), decayed(step))


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer of optax with this project's defaults.

    Attributes:
        make: The optax function; its first argument is the learning rate.
        defaults: Arguments whose defaults differ from optax's.
        decoupled_decay: True if ``make`` takes ``weight_decay`` and ``mask`` itself. Otherwise
            weight decay is an L2 term in the gradient.
    """

    make: Callable[..., optax.GradientTransformation]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    decoupled_decay: bool = False


OPTIMIZERS = {
    # As in TF1, which the published runs used: epsilon inside the square root, a mean square that
    # starts at 1, and a learning rate that is multiplied in before the momentum accumulator.
    "rmsprop": Optimizer(
        optax.rmsprop,
        {"decay": 0.9, "eps": 1e-3, "initial_scale": 1.0, "eps_in_sqrt": True, "momentum": 0.9},
    ),
    "sgd": Optimizer(optax.sgd),
    "momentum": Optimizer(optax.sgd, {"momentum": 0.9}),
    "adam": Optimizer(optax.adam),
    "adamw": Optimizer(optax.adamw, decoupled_decay=True),
}

# Arguments of optax's functions that the config sets elsewhere.
_SET_ELSEWHERE = {
    "learning_rate": "optimizer.learning_rate and optimizer.learning_rate_schedule",
    "weight_decay": "optimizer.weight_decay",
    "mask": "the project: only kernels decay",
}
_DTYPES = ("bfloat16", "float32")


def make_optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
    """Builds an optimizer.

    >>> optimizer = make_optimizer("adamw", 1e-3, weight_decay=0.01, options={"b2": 0.95})

    Args:
        name: A name in ``OPTIMIZERS``.
        learning_rate: The learning rate, or a function of the step that returns it.
        weight_decay: The factor of the L2 loss ½‖w‖², which acts through the gradient. For an
            optimizer with decoupled weight decay, the factor of that. Only kernels decay: biases
            and batch norm do not.
        clip_norm: The largest norm of each gradient, and then of all gradients together. 0 means no
            clipping.
        options: Arguments of the optax function by name, such as ``b1``, ``b2``, ``eps``,
            ``momentum`` or ``nesterov``. They replace the defaults in ``OPTIMIZERS``.

    Raises:
        UsageError: For an unknown name or option, an option of the wrong type, or a number that
            is not allowed.
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    numbers = {"weight_decay": weight_decay, "clip_norm": clip_norm}
    if isinstance(learning_rate, int | float):
        numbers["learning_rate"] = learning_rate
    check_numbers(NUMBERS, numbers)
    optimizer, options = OPTIMIZERS[name], options or {}
    _check_options(name, options)
    arguments = {**optimizer.defaults, **options}
    decay = {"weight_decay": weight_decay, "mask": _is_kernel}
    parts = []
    if optimizer.decoupled_decay:
        arguments |= decay
    elif weight_decay:
        # The official code clips the gradient of the whole loss, L2 included.
        parts.append(optax.add_decayed_weights(**decay))
    if clip_norm:
        parts += [_clip_each_by_norm(clip_norm), optax.clip_by_global_norm(clip_norm)]
    parts.append(optimizer.make(learning_rate, **arguments))
    return optax.chain(*parts)


def _check_options(optimizer: str, options: Mapping[str, Any]) -> None:
    """Raises UsageError for an option that the optax function does not take."""
    allowed = {
        name: parameter.default
        for name, parameter in inspect.signature(OPTIMIZERS[optimizer].make).parameters.items()
        if name not in _SET_ELSEWHERE
    }
    for name, value in options.items():
        if name in _SET_ELSEWHERE:
            raise UsageError(f"optimizer.options.{name} is set by {_SET_ELSEWHERE[name]}")
        if name not in allowed:
            raise unknown_name(f"option of optimizer {optimizer}", name, allowed)
        default = allowed[name]
        if isinstance(default, bool):
            good, expected = isinstance(value, bool), "True or False"
        elif name.endswith("dtype"):
            good, expected = value is None or value in _DTYPES, " or ".join(_DTYPES)
        else:
            rule = OPTION_NUMBERS.get(name, Number(optional=default is None))
            rule.check(f"optimizer.options.{name}", value)
            continue
        if not good:
            raise UsageError(f"optimizer.options.{name} must be {expected}, got {value!r}")


def _is_kernel(params):
    """Returns the mask of weight decay: False for biases and batch norm's scale and bias."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _clip_each_by_norm(max_norm: float) -> optax.GradientTransformation:
    def clip(gradient):
        norm = jnp.linalg.norm(gradient.ravel())
        return gradient * jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))

    return optax.stateless(lambda updates, params: jax.tree.map(clip, updates))
