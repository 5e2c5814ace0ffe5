"""What one process wants, all of them do, at the same step.

A pod that is to stop, or to save because some minutes have passed, has to do so at one step in all
its processes, and only one may know of it. Their wishes travel with the sums of a step, which are
the same everywhere, and are read a few steps later, when nobody has to wait for them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from effnetv2_jax.training.mesh import Batch, abstract, shard_batch

STEPS_BEHIND = 2
"""So many steps are under way before the sums of one are waited for."""

_NAMES = ("stop", "save")


class Agreement:
    """The wishes of all processes.

    Args:
        wishes: of this process, asked at every step; ``stop`` and ``save``, if it has any.
        mesh: of all devices.
    """

    def __init__(self, wishes: Callable[[], Mapping[str, bool]], mesh: Mesh):
        self._wishes = wishes
        self._mesh = mesh
        self._own_devices = len(mesh.local_devices)
        self.alone = jax.process_count() == 1
        """Whether there is nobody to agree with."""

    def attach(self, batch: Batch) -> Batch:
        """The batch of a step, with this process's wishes."""
        return batch if self.alone else batch | self._as_batch(self._wishes())

    def attach_shapes(self, batch: Batch) -> Batch:
        """The same of a batch that is abstract; asks nobody."""
        return batch if self.alone else batch | abstract(self._as_batch({}))

    def _as_batch(self, wishes: Mapping[str, bool]) -> Batch:
        row = np.array([wishes.get(name, False) for name in _NAMES], np.float32)
        return shard_batch({"wishes": np.tile(row, (self._own_devices, 1))}, self._mesh)

    def agreed(self, sums: Mapping[str, Any]) -> dict[str, bool]:
        """What was wished for by anybody.

        Args:
            sums: of a step whose batch had wishes attached.
        """
        if self.alone:
            wishes = self._wishes()
            return {name: wishes.get(name, False) for name in _NAMES}
        return {name: bool(sums["wishes"][i] > 0) for i, name in enumerate(_NAMES)}

    def given_up(self) -> bool:
        """Whether a process that is alone may stop where it is, without a step."""
        return self.alone and self._wishes().get("stop", False)
