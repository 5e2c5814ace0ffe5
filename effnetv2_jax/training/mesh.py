"""Where arrays live: the mesh, how batches are split over it, and how the state may be.

Both axes split the batch. ``fsdp`` splits the state as well (parameters, optimiser, averages: ZeRO,
Rajbhandari et al. 2019, arXiv:1910.02054), so that each of its devices keeps a part; with one
device along ``fsdp``, the default, every device keeps a copy.

Several TPU slices (multislice) are one mesh, slice after slice along ``data``: what neighbours tell
each other stays inside a slice, and sums over all devices alone cross the network between slices.
"""

import collections
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training.state import PyTree

Batch = dict[str, Any]

AXES = ("data", "fsdp")
"""Collectives over all devices name both."""

MIN_SHARDED_SIZE = 1 << 14
"""Smaller arrays are copied everywhere: an exchange would cost more than it spares."""


def make_mesh(devices=None, *, fsdp: int = 1) -> Mesh:
    """A mesh of all devices, or of those given, along ``AXES``.

    Args:
        devices: in the order of the batch, but for slices, which come one after the other; None for
            all.
        fsdp: neighbours that share one copy of the state, all in one slice.

    Raises:
        UsageError: where fsdp does not divide the devices, or those of a slice.
    """
    # Stable: within a slice, and where there is but one, the order stays.
    devices = sorted(jax.devices() if devices is None else devices, key=slice_of)
    if fsdp < 1 or len(devices) % fsdp:
        raise UsageError(f"fsdp must divide the number of devices ({len(devices)}), got {fsdp}")
    check_within_slices("fsdp", fsdp, devices)
    return Mesh(np.asarray(devices).reshape(-1, fsdp), AXES)


def slice_of(device) -> int:
    """The number of the TPU slice that a device is in; 0 where JAX knows of no slices."""
    return getattr(device, "slice_index", None) or 0


def check_within_slices(name: str, size: int, devices: Iterable) -> None:
    """Raises UsageError where a group of neighbours is not in one slice.

    Args:
        name: of what makes the groups.
        size: of a group; divides the number of devices.
        devices: in the order of a mesh.
    """
    slices = [slice_of(device) for device in devices]
    groups = np.array(slices).reshape(-1, size)
    if (groups != groups[:, :1]).any():
        smallest = min(collections.Counter(slices).values())
        raise UsageError(
            f"{name} must divide the number of devices of a slice ({smallest}), got {size}: only "
            "gradients are to cross the network between slices"
        )


def check_batch_size(name: str, batch_size: int, mesh: Mesh, accumulation_steps: int = 1) -> None:
    """Raises UsageError unless the mesh's devices (× accumulation_steps) divide the batch."""
    parts = mesh.size * accumulation_steps
    if batch_size < 1 or batch_size % parts:
        steps = f" × {accumulation_steps} accumulation steps" if accumulation_steps > 1 else ""
        raise UsageError(
            f"{name} must be a multiple of the number of devices ({mesh.size}{steps}), "
            f"got {batch_size}"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Along the first axis, over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Puts this process's part of a batch on its devices."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def abstract_batch(
    image_size: int, batch_size: int, label_shape: tuple[int, ...], mesh: Mesh
) -> Batch:
    """What ``shard_batch`` makes of a training batch, without its numbers.

    Args:
        image_size: side in px.
        batch_size: of all processes.
        label_shape: of an example.
        mesh: from ``make_mesh``.
    """
    sharding = batch_sharding(mesh)

    def array(dtype, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)

    return {
        "image": array(np.uint8, image_size, image_size, 3),
        "label": array(np.int32, *label_shape),
        "mask": array(np.float32),
        "index": array(np.int32),
    }


def sharded_axis(shape: tuple[int, ...], mesh: Mesh) -> int | None:
    """Which axis of a state's array is split over ``fsdp``: its longest that can be.

    Returns:
        None for an array that every device has a copy of.
    """
    fsdp = mesh.shape["fsdp"]
    if fsdp == 1 or np.prod(shape) < MIN_SHARDED_SIZE:
        return None
    axes = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    return max(axes, key=lambda axis: shape[axis], default=None)


def state_specs(state: PyTree, mesh: Mesh) -> PyTree:
    """The ``PartitionSpec`` of every array; the same for a parameter, its gradient and averages."""

    def spec(x) -> PartitionSpec:
        axis = sharded_axis(x.shape, mesh)
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "fsdp")

    return jax.tree.map(spec, state)


def state_shardings(state: PyTree, mesh: Mesh) -> PyTree:
    """The ``NamedSharding`` of every array of a state, which may be abstract."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), state_specs(state, mesh))


def shard_state(state: PyTree, mesh: Mesh) -> PyTree:
    """Puts a state on the mesh; every process has to give the same values."""

    def put(x, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, state, state_shardings(state, mesh))


def abstract(tree: PyTree) -> PyTree:
    """Shapes, dtypes and shardings of arrays, which outlive a donation."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def abstract_state(shapes: PyTree, mesh: Mesh) -> PyTree:
    """The same for a state that is not there yet; shapes are ``jax.eval_shape``'s."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )
