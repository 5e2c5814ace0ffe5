"""Checkpoints of a run, through Orbax: atomic, written in the background, the newest few kept."""

import pathlib

import orbax.checkpoint as ocp
from jax.sharding import Mesh

from effnetv2_jax.training.mesh import abstract_state
from effnetv2_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints under ``workdir/checkpoints``.

    Args:
        workdir: of the run, whose ``checkpoints`` folder is used.
        keep: how many of the newest are kept.
        create: makes the directory where it is missing; False for a reader.
    """

    def __init__(self, workdir: str | pathlib.Path, *, keep: int = 3, create: bool = True):
        # Orbax wants an absolute path.
        directory = pathlib.Path(workdir).expanduser().resolve() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=create)
        self._manager = ocp.CheckpointManager(directory, options=options)

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Saves in the background, unless this step is saved already."""
        step = int(state.step)
        if step != self.latest_step():
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, shapes: TrainState, mesh: Mesh) -> TrainState:
        """Reads the newest checkpoint onto the mesh, whatever mesh it was written from.

        Args:
            shapes: of the state, from ``jax.eval_shape``.
            mesh: from ``make_mesh``.
        """
        target = abstract_state(shapes, mesh)
        return self._manager.restore(self.latest_step(), args=ocp.args.StandardRestore(target))

    def close(self) -> None:
        """Waits for what is still being written."""
        self._manager.wait_until_finished()
        self._manager.close()
