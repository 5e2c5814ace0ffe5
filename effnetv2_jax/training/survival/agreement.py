"""Lets all processes stop, or save, at the same step if one of them wants to.

A pod that is to stop, or to save because some minutes have passed, has to do so at one step in all
its processes, and only one process may know of it. The wishes of all processes travel with the sums
of a step, which are the same everywhere. They are read a few steps later, so that nobody waits.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from effnetv2_jax.training.mesh import Batch, abstract, shard_batch

STEPS_BEHIND = 2
"""The number of steps that are under way before the sums of one are waited for."""

_NAMES = ("stop", "save")


class Agreement:
    """The wishes of all processes.

    Args:
        wishes: Returns this process's wishes, ``stop`` and ``save``; a missing one is False. It is
            called at every step.
        mesh: The mesh of all devices.
    """

    def __init__(self, wishes: Callable[[], Mapping[str, bool]], mesh: Mesh):
        self._wishes = wishes
        self._mesh = mesh
        self._own_devices = len(mesh.local_devices)
        self.alone = jax.process_count() == 1
        """True if there is only one process, which need not agree with anybody."""

    def attach(self, batch: Batch) -> Batch:
        """Returns the batch of a step with this process's wishes."""
        return batch if self.alone else batch | self._as_batch(self._wishes())

    def attach_shapes(self, batch: Batch) -> Batch:
        """Adds the shape of the wishes to an abstract batch, without asking for them."""
        return batch if self.alone else batch | abstract(self._as_batch({}))

    def _as_batch(self, wishes: Mapping[str, bool]) -> Batch:
        row = np.array([wishes.get(name, False) for name in _NAMES], np.float32)
        return shard_batch({"wishes": np.tile(row, (self._own_devices, 1))}, self._mesh)

    def agreed(self, sums: Mapping[str, Any]) -> dict[str, bool]:
        """Returns ``stop`` and ``save``, each True if any process wished for it.

        Args:
            sums: The sums of a step whose batch had the wishes attached.
        """
        if self.alone:
            wishes = self._wishes()
            return {name: wishes.get(name, False) for name in _NAMES}
        return {name: bool(sums["wishes"][i] > 0) for i, name in enumerate(_NAMES)}

    def given_up(self) -> bool:
        """Returns True if there is only this process and it wants to stop, even between steps."""
        return self.alone and self._wishes().get("stop", False)
