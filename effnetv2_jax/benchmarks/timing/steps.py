"""The training step that benchmarks time and compile: the very one that training builds."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training.build import Training, build_training
from effnetv2_jax.training.mesh import Batch, make_mesh, shard_batch
from effnetv2_jax.training.optimizers import make_optimizer


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """A training step, but for its devices and its batch.

    Attributes:
        model: A name of ``list_models()``.
        image_size: The side of the images in px. A ViT is made for it; other networks take any.
        optimizer: A name in ``OPTIMIZERS``.
        fsdp: The number of neighbouring devices that share one copy of the state.

    The other fields are arguments of ``training.build.build_training`` with the same names.
    """

    model: str
    image_size: int
    optimizer: str = "rmsprop"
    dtype: str = "bfloat16"
    num_classes: int = 1000
    bn_group_size: int | None = None
    remat: str = "none"
    scan_blocks: bool = False
    accumulation_steps: int = 1
    fsdp: int = 1
    reduce_dtype: str = "float32"
    mixing: bool = False

    def build(self, devices: Sequence[jax.Device]) -> Training:
        """Builds the step without making an array.

        Args:
            devices: The devices in the order of the batch. They need not be attached.

        Raises:
            UsageError: For the first field that cannot be used.
        """
        if self.image_size < 1:
            raise UsageError(f"image_size must be at least 1, got {self.image_size}")
        arguments = dataclasses.asdict(self)
        for name in ("image_size", "optimizer", "fsdp"):
            del arguments[name]
        return build_training(
            **arguments,
            mesh=make_mesh(devices, fsdp=self.fsdp),
            # The paper's numbers, none of which changes what the step costs.
            optimizer=make_optimizer(
                self.optimizer, optax.constant_schedule(0.256), weight_decay=1e-5
            ),
            label_smoothing=0.1,
            spec_fields={"eval_size": self.image_size},
        )

    def noise(self, batch_size: int, mesh: Mesh) -> Batch:
        """Returns a batch of noise on the mesh."""
        rng = np.random.default_rng(0)
        shape = (batch_size, self.image_size, self.image_size, 3)
        batch = {
            "image": rng.integers(0, 256, shape, np.uint8),
            "label": rng.integers(0, self.num_classes, batch_size, np.int32),
            "mask": np.ones(batch_size, np.float32),
            "index": np.arange(batch_size, dtype=np.int32),
        }
        return shard_batch(batch, mesh)
