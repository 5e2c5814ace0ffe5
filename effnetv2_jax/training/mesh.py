"""The mesh of devices, and how batches and the state are split over it.

Both axes split the batch. ``fsdp`` also splits the state (parameters, optimizer, averages: ZeRO,
Rajbhandari et al. 2019, arXiv:1910.02054), so that each device along it keeps a part. By default
there is one device along ``fsdp``, and every device keeps a copy.

Several TPU slices (multislice) are one mesh, slice after slice along ``data``. Exchanges between
neighbours stay inside a slice; only sums over all devices cross the network between slices.
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
"""The axes of the mesh; collectives over all devices name both."""

MIN_SHARDED_SIZE = 1 << 14
"""Arrays smaller than this are copied to every device: exchanging them would cost more."""


def make_mesh(devices=None, *, fsdp: int = 1) -> Mesh:
    """Returns a mesh of devices along ``AXES``.

    Args:
        devices: The devices in the order of the batch; they are sorted by slice. None means all.
        fsdp: The number of neighbouring devices, all in one slice, that share a copy of the state.

    Raises:
        UsageError: If fsdp does not divide the number of devices, or of the devices of a slice.
    """
    # A stable sort: within a slice the order stays.
    devices = sorted(jax.devices() if devices is None else devices, key=slice_of)
    if fsdp < 1 or len(devices) % fsdp:
        raise UsageError(f"fsdp must divide the number of devices ({len(devices)}), got {fsdp}")
    check_within_slices("fsdp", fsdp, devices)
    return Mesh(np.asarray(devices).reshape(-1, fsdp), AXES)


def slice_of(device) -> int:
    """Returns the number of the TPU slice that a device is in; 0 if JAX knows of no slices."""
    return getattr(device, "slice_index", None) or 0


def check_within_slices(name: str, size: int, devices: Iterable) -> None:
    """Raises UsageError if a group of neighbouring devices is not in one slice.

    Args:
        name: The name of the setting that makes the groups.
        size: The number of devices of a group, which divides the number of devices.
        devices: The devices in the order of a mesh.
    """
    slices = [slice_of(device) for device in devices]
    groups = np.array(slices).reshape(-1, size)
    if (groups != groups[:, :1]).any():
        smallest = min(collections.Counter(slices).values())
        raise UsageError(
            f"{name} must divide the number of devices of a slice ({smallest}), got {size}: only "
            "gradients may cross the network between slices"
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


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Puts this process's part of a batch on its devices, along the first axis."""
    sharding = NamedSharding(mesh, PartitionSpec(AXES))
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def abstract_batch(
    image_size: int, batch_size: int, label_shape: tuple[int, ...], mesh: Mesh
) -> Batch:
    """Returns the shapes, dtypes and shardings of a training batch after ``shard_batch``.

    Args:
        image_size: The side of the images in px.
        batch_size: The number of examples, over all processes.
        label_shape: The shape of an example's label.
        mesh: The mesh from ``make_mesh``.
    """
    sharding = NamedSharding(mesh, PartitionSpec(AXES))

    def array(dtype, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)

    return {
        "image": array(np.uint8, image_size, image_size, 3),
        "label": array(np.int32, *label_shape),
        "mask": array(np.float32),
        "index": array(np.int32),
    }


def sharded_axis(shape: tuple[int, ...], mesh: Mesh) -> int | None:
    """Returns the longest axis that ``fsdp`` can split, None if every device has a copy."""
    fsdp = mesh.shape["fsdp"]
    if fsdp == 1 or np.prod(shape) < MIN_SHARDED_SIZE:
        return None
    axes = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    return max(axes, key=lambda axis: shape[axis], default=None)


def state_specs(state: PyTree, mesh: Mesh) -> PyTree:
    """Returns the ``PartitionSpec`` of every array.

    It depends only on an array's shape, and so is the same for a parameter, its gradient and its
    average.
    """

    def spec(x) -> PartitionSpec:
        axis = sharded_axis(x.shape, mesh)
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "fsdp")

    return jax.tree.map(spec, state)


def state_shardings(state: PyTree, mesh: Mesh) -> PyTree:
    """Returns the ``NamedSharding`` of every array of a state, which may be abstract."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), state_specs(state, mesh))


def shard_state(state: PyTree, mesh: Mesh) -> PyTree:
    """Puts a state on the mesh; every process must give the same values."""

    def put(x, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, state, state_shardings(state, mesh))


def abstract(tree: PyTree) -> PyTree:
    """Returns the shapes, dtypes and shardings of arrays, which outlive a donation."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def abstract_state(shapes: PyTree, mesh: Mesh) -> PyTree:
    """Returns the shapes, dtypes and shardings of a state, of which only the shapes are known."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )
