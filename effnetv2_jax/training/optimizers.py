"""Learning-rate schedules and optimisers as the official code has them, out of optax."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from effnetv2_jax.runtime.errors import UsageError, unknown_name

Schedule = Callable[[jax.Array], jax.Array]


def _exponential(peak: float, total_steps: int, decay_steps: float, decay_rate: float):
    return optax.exponential_decay(peak, decay_steps, decay_rate, staircase=True)


def _cosine(peak: float, total_steps: int, decay_steps: float, decay_rate: float):
    return optax.cosine_decay_schedule(peak, total_steps)


def _constant(peak: float, total_steps: int, decay_steps: float, decay_rate: float):
    return optax.constant_schedule(peak)


def _cooldown(peak: float, total_steps: int, decay_steps: float, decay_rate: float):
    # Hägele et al. 2024 (arXiv 2405.18392): the full rate, then a straight line to 0 at the end.
    fall = min(int(decay_steps), total_steps)
    return optax.linear_schedule(peak, 0.0, fall, total_steps - fall)


DECAYS = {
    "exponential": _exponential,
    "cosine": _cosine,
    "constant": _constant,
    "cooldown": _cooldown,
}


def make_schedule(
    decay: str,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int = 0,
    decay_steps: float = 1.0,
    decay_rate: float = 0.97,
) -> Schedule:
    """Learning rate by step: a linear warm-up from 0, then a decay.

    The decay counts from step 0, not from the end of the warm-up, which overrides it: so does the
    official code.

    Args:
        decay: a name in ``DECAYS``.
        peak: rate at the end of the warm-up (of an undecayed schedule).
        total_steps: of the run; the cosine and the cooldown end there.
        warmup_steps: 0 leaves out the warm-up.
        decay_steps: of ``exponential``, steps between two falls (the paper: 2.4 epochs); of
            ``cooldown``, steps of the fall to 0 (at most all of them).
        decay_rate: of ``exponential``, factor of a fall (the paper: 0.97).

    Raises:
        UsageError: for an unknown decay or a negative warm-up.
    """
    if decay not in DECAYS:
        raise unknown_name("learning-rate decay", decay, DECAYS)
    if warmup_steps < 0:
        raise UsageError(f"warmup_steps must be at least 0, got {warmup_steps}")
    decayed = DECAYS[decay](peak, total_steps, decay_steps, decay_rate)
    if warmup_steps == 0:
        return decayed
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return lambda step: jnp.where(step < warmup_steps, warmup(step), decayed(step))


def _rmsprop(rate: Schedule) -> optax.GradientTransformation:
    # As in TF1, which the published runs used: epsilon inside the square root, the mean square
    # starts at 1, and the rate is multiplied in before the momentum accumulator.
    return optax.rmsprop(
        rate, decay=0.9, eps=1e-3, initial_scale=1.0, eps_in_sqrt=True, momentum=0.9
    )


def _momentum(rate: Schedule) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=0.9)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A way to step.

    Attributes:
        make: of (rate), and of ``weight_decay=`` and ``mask=`` where the decay is decoupled.
        decoupled_decay: it takes the weight decay itself, instead of an L2 term in the gradient.
    """

    make: Callable[..., optax.GradientTransformation]
    decoupled_decay: bool = False


OPTIMIZERS = {
    "rmsprop": Optimizer(_rmsprop),
    "sgd": Optimizer(optax.sgd),
    "momentum": Optimizer(_momentum),
    "adam": Optimizer(optax.adam),
    "adamw": Optimizer(optax.adamw, decoupled_decay=True),
}


def make_optimizer(
    name: str,
    learning_rate: Schedule,
    *,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Builds an optimiser.

    Args:
        name: a name in ``OPTIMIZERS``.
        learning_rate: of (step) → rate.
        weight_decay: factor of the L2 loss ½‖w‖², which acts through the gradient, or of the
            decoupled decay where the optimiser has one. Kernels only: biases and batch norm are
            left alone.
        clip_norm: clips each gradient's norm and then the global norm to this; 0 leaves it out.

    Raises:
        UsageError: for an unknown name or a negative number.
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    for what, value in (("weight_decay", weight_decay), ("clip_norm", clip_norm)):
        if value < 0:
            raise UsageError(f"{what} must be at least 0, got {value}")
    optimizer = OPTIMIZERS[name]
    decay = {"weight_decay": weight_decay, "mask": _is_kernel}
    parts = []
    if weight_decay and not optimizer.decoupled_decay:
        # The official code clips the gradient of the whole loss, L2 included.
        parts.append(optax.add_decayed_weights(**decay))
    if clip_norm:
        parts += [_clip_each_by_norm(clip_norm), optax.clip_by_global_norm(clip_norm)]
    parts.append(optimizer.make(learning_rate, **(decay if optimizer.decoupled_decay else {})))
    return optax.chain(*parts)


def _is_kernel(params):
    """Mask of what decays: everything but biases and batch norm's scale and bias."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _clip_each_by_norm(max_norm: float) -> optax.GradientTransformation:
    def clip(gradient):
        norm = jnp.linalg.norm(gradient.ravel())
        return gradient * jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))

    return optax.stateless(lambda updates, params: jax.tree.map(clip, updates))
