"""Builds everything a training computes with, from plain arguments.

``runtime/config.py`` calls this for a run and ``benchmarks`` for what they time, so both run the
same compiled programs.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from effnetv2_jax.models import Network, abstract_model, create_model, get_spec
from effnetv2_jax.preprocessing import Preprocessing, get_preprocessing
from effnetv2_jax.runtime.errors import unknown_name
from effnetv2_jax.training.answers import AnswerStep, make_answer_step
from effnetv2_jax.training.evaluation import EvalStep, make_eval_step
from effnetv2_jax.training.mesh import AXES, abstract_state
from effnetv2_jax.training.state import TrainState, create_state, functional
from effnetv2_jax.training.step import TrainStep, make_train_step

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
AUTO = "auto"
"""A name in place of one of ``DTYPES``: bfloat16 on TPUs and GPUs, float32 on CPUs."""


@dataclasses.dataclass(frozen=True)
class Training:
    """A model, its training step and its evaluation step on a mesh; no array is made yet.

    Attributes:
        mesh: The mesh that batches and the state are split over.
        optimizer: The optimizer.
        shapes: The state as a tree of ``jax.ShapeDtypeStruct``, without shardings.
        train_step: The training step, which compiles for a batch's shapes when it is called or
            lowered.
        eval_step: The evaluation step, which compiles when it is called.
        answer_step: The step that answers every example, which compiles when it is called.
        create: Makes the network with random weights.
    """

    mesh: Mesh
    optimizer: optax.GradientTransformation
    shapes: TrainState
    train_step: TrainStep
    eval_step: EvalStep
    answer_step: AnswerStep
    create: Callable[[], Network]

    def abstract_state(self) -> TrainState:
        """Returns ``shapes`` with the sharding of every array on the mesh."""
        return abstract_state(self.shapes, self.mesh)

    def first_state(self, initialize: Callable[[Network], None] | None = None) -> TrainState:
        """Returns the state before the first step; ``mesh.shard_state`` puts it on the mesh.

        Args:
            initialize: Changes the weights of the new network in place, such as by reading them
                from a file. None keeps the random ones.
        """
        model = self.create()
        if initialize is not None:
            initialize(model)
        _, params, batch_stats = functional(model)
        return create_state(params, batch_stats, self.optimizer)


def resolve_dtype(dtype: str, platform: str) -> str:
    """Returns the name of a dtype for ``AUTO``, and any other name as it is.

    CPUs mostly lack bfloat16, and XLA emulates it there (docs/performance.md).

    Args:
        dtype: The name.
        platform: The platform of the devices: ``cpu``, ``gpu`` or ``tpu``.
    """
    if dtype != AUTO:
        return dtype
    return "float32" if platform == "cpu" else "bfloat16"


def build_training(
    model: str,
    *,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    num_classes: int,
    preprocessing: Preprocessing | None = None,
    dtype: str = "float32",
    reduce_dtype: str = "float32",
    bn_group_size: int | None = None,
    remat: str = "none",
    scan_blocks: bool = False,
    seed: int = 0,
    spec_fields: Mapping[str, Any] | None = None,
    **step_options: Any,
) -> Training:
    """Builds the model, the training step and the evaluation step without making an array.

    Args:
        model: A name of ``list_models()``.
        mesh: The mesh from ``mesh.make_mesh``; its devices may be those of a TPU topology, which
            need not be attached.
        optimizer: The optimizer, such as ``optimizers.make_optimizer`` returns.
        num_classes: The number of classes.
        preprocessing: The input family. None means the model's own.
        dtype: The dtype of the computation, a name in ``DTYPES`` or ``AUTO``. Parameters are
            float32.
        reduce_dtype: The dtype in which gradients are summed over devices, a name in ``DTYPES``.
        bn_group_size: The number of neighbouring devices that share batch norm's statistics. None
            means all of them.
        remat: What the backward pass recomputes: ``none``, ``blocks`` or ``stages``.
        scan_blocks: Compiles equal blocks of an EfficientNet as a loop.
        seed: The seed of the random weights and of everything that a step draws.
        spec_fields: Fields of the model's spec to change, such as ``{"survival_prob": 0.9}``.
        **step_options: Further arguments of ``step.make_train_step``, such as ``loss``,
            ``label_smoothing``, ``class_weights``, ``ema_decay``, ``mixing`` and
            ``accumulation_steps``.

    Raises:
        UsageError: For the first argument that cannot be used.
    """
    dtype = resolve_dtype(dtype, mesh.devices.flat[0].platform)
    for name, value in (("dtype", dtype), ("reduce_dtype", reduce_dtype)):
        if value not in DTYPES:
            raise unknown_name(name, value, DTYPES)
    family = preprocessing or get_preprocessing(get_spec(model).preprocessing)
    arguments: dict[str, Any] = {
        "num_classes": num_classes,
        "dtype": DTYPES[dtype],
        "axis_name": AXES,
        "bn_group_size": bn_group_size,
        "remat": remat,
        "scan_blocks": scan_blocks,
        **(spec_fields or {}),
    }
    images = {"mean": family.mean, "std": family.std, "dtype": DTYPES[dtype]}
    apply, params, batch_stats = functional(abstract_model(model, **arguments))
    return Training(
        mesh=mesh,
        optimizer=optimizer,
        shapes=jax.eval_shape(lambda *trees: create_state(*trees, optimizer), params, batch_stats),
        train_step=make_train_step(
            apply,
            optimizer,
            mesh=mesh,
            num_classes=num_classes,
            seed=seed,
            reduce_dtype=DTYPES[reduce_dtype],
            **images,
            **step_options,
        ),
        eval_step=make_eval_step(apply, mesh=mesh, **images),
        answer_step=make_answer_step(apply, mesh=mesh, **images),
        create=lambda: create_model(model, rngs=nnx.Rngs(seed), **arguments),
    )
