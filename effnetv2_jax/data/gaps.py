"""Batches with holes: what could not be prepared keeps its place, with mask 0."""

from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

Batch = dict[str, np.ndarray]


def in_place(
    dataset: tf.data.Dataset,
    positions: np.ndarray,
    batch_size: int,
    report: Callable[[np.ndarray], None],
) -> Iterator[Batch]:
    """Puts examples where they belong in their batches; places whose example is missing get mask 0.

    Args:
        dataset: batches with ``position``, in order, some of them missing.
        positions: that should be there, in order; a multiple of batch_size.
        batch_size: of the result.
        report: is given the positions that are missing, if any.
    """
    batches = dataset.as_numpy_iterator()
    waiting = _empty(dataset.element_spec)
    for expected in positions.reshape(-1, batch_size):
        parts = [waiting]
        while sum(len(part["position"]) for part in parts) < batch_size and (
            batch := next(batches, None)
        ):
            parts.append(batch)
        parts = [part for part in parts if len(part["position"])] or [waiting]
        present = parts[0] if len(parts) == 1 else _concatenate(parts)
        here = np.searchsorted(present["position"], expected[-1], side="right")
        waiting = {name: array[here:] for name, array in present.items()}
        present = {name: array[:here] for name, array in present.items()}
        mask = np.isin(expected, present.pop("position"))
        if not mask.all():
            report(expected[~mask])
            present = {name: _scattered(array, mask) for name, array in present.items()}
        yield present | {"mask": mask.astype(np.float32)}


def _empty(element_spec: dict[str, tf.TensorSpec]) -> Batch:
    return {
        name: np.empty((0, *spec.shape[1:]), spec.dtype.as_numpy_dtype)
        for name, spec in element_spec.items()
    }


def _concatenate(batches: list[Batch]) -> Batch:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _scattered(rows: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Zeros with the rows where the mask is."""
    result = np.zeros((len(mask), *rows.shape[1:]), rows.dtype)
    result[mask] = rows
    return result
