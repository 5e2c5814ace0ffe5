"""Packs a state into few arrays: its small arrays become one vector for each dtype.

A checkpoint costs Orbax about 2 ms of a core for every array, whatever its size. Of a thousand
arrays of a network four fifths are small (batch norm, biases, squeeze-excite), with a few percent
of the numbers, so they are written as one vector. Large arrays keep their names.
"""

import collections
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from effnetv2_jax.training import mesh as meshes
from effnetv2_jax.training.state import PyTree


def pack(state: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Splits a state into large arrays and vectors of the small ones.

    Args:
        state: A pytree of arrays. An array that is split over devices counts as large.

    Returns:
        A pair. The first is ``{"large": nested dict of arrays, "small": {dtype: vector}}``. The
        second tells where the small arrays are, ``{name: [dtype, offset, shape]}``, in a form that
        JSON can hold.
    """
    large, small = _split(state)
    small = jax.device_get(small)
    vectors: collections.defaultdict[str, list[np.ndarray]] = collections.defaultdict(list)
    ends: collections.Counter[str] = collections.Counter()
    places = {}
    for name, x in small.items():
        dtype = x.dtype.name
        places[name] = [dtype, ends[dtype], list(x.shape)]
        ends[dtype] += x.size
        vectors[dtype].append(x.ravel())
    packed = {dtype: np.concatenate(parts) for dtype, parts in vectors.items()}
    return {"large": ocp.tree.from_flat_dict(large, sep="/"), "small": packed}, places


def abstract_packed(shapes: PyTree, mesh: Mesh) -> PyTree:
    """Returns the shapes of what ``pack`` makes of a state, as for ``unpack``."""
    large, arrays = _split(meshes.abstract_state(shapes, mesh))
    sizes: collections.Counter[str] = collections.Counter()
    for x in arrays.values():
        sizes[x.dtype.name] += x.size
    small = {dtype: np.empty(size, dtype) for dtype, size in sizes.items()}
    return {"large": ocp.tree.from_flat_dict(large, sep="/"), "small": small}


def _split(state: PyTree) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the large and the small arrays by name."""
    parts: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for name, x in ocp.tree.to_flat_dict(state, sep="/").items():
        parts[x.size < meshes.MIN_SHARDED_SIZE][name] = x
    return parts


def unpack(packed: PyTree, places: dict[str, Any], shapes: PyTree, mesh: Mesh) -> PyTree:
    """Returns the state that ``pack`` was given, on the mesh.

    Args:
        packed: The arrays that ``pack`` returned; the large ones are on the mesh.
        places: The places that ``pack`` returned.
        shapes: The state's shapes, from ``jax.eval_shape``.
        mesh: The mesh from ``make_mesh``.

    Raises:
        KeyError: If an array of the state is in neither part.
    """
    large = ocp.tree.to_flat_dict(packed["large"], sep="/")
    arrays = large | meshes.shard_state(unpack_small(packed["small"], places), mesh)
    names = ocp.tree.to_flat_dict(shapes, sep="/")
    return jax.tree.unflatten(jax.tree.structure(shapes), [arrays[name] for name in names])


def unpack_small(vectors: Mapping[str, Any], places: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns the small arrays by name, from ``pack``'s vectors by dtype and its places."""
    arrays = {}
    for name, (dtype, offset, shape) in places.items():
        size = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.asarray(vectors[dtype])[offset : offset + size].reshape(shape)
    return arrays
