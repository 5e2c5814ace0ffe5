"""The order of examples: a seeded permutation of every epoch, the same for any number of processes.

Position p of the endless stream is in epoch p div size. Batch k holds the positions k·batch …
(k + 1)·batch − 1, and process i of n reads those that are i modulo n. Which example stands at a
position is a function of (seed, position) alone, so a run can start anywhere at once.

Where an example alone costs as much to read as one of a row, an epoch is one permutation. Where it
does not (large files of records, on a disk or in a bucket), an epoch is read in windows of 64
lanes: each lane reads a chunk of 64 examples in a row, and position j of the window is taken from
lane j mod 64. Chunks are a permutation of the split's, and so are the examples within a chunk. What
is left over, less than a window and another part of the split in every epoch, is read one by one at
the epoch's end.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from effnetv2_jax.data.seeds import Use, for_use, make_seed
from effnetv2_jax.data.sources.base import Example, Split
from effnetv2_jax.runtime.errors import UsageError

LANES = 64
CHUNK = 64
WINDOW = LANES * CHUNK

# Files that are open at once where examples are read one by one.
_PARALLEL_READS = 16


@dataclasses.dataclass(frozen=True)
class Order:
    """The order in which a run reads a split.

    Attributes:
        split: of a source.
        seed: of the run.
    """

    split: Split
    seed: int

    def locate(self, position: tf.Tensor | int) -> tf.Tensor:
        """The number in the split of the example at a position of the stream, int64 []."""
        position = tf.convert_to_tensor(position, tf.int64)
        epoch, j = position // self.split.size, position % self.split.size
        if self.split.get is not None:
            return _permuted(j, self._seed(Use.EXAMPLES, epoch), self.split.size)
        lane, rank = j % WINDOW % LANES, j % WINDOW // LANES
        chunk = tf.minimum(j // WINDOW, max(self._num_windows - 1, 0)) * LANES + lane
        in_chunk = self._chunk_first(epoch, chunk) + self._within(epoch, chunk)[rank]
        in_tail = self._in_tail(epoch, tf.maximum(j - self._tail_begin, 0))
        return tf.where(j < self._tail_begin, in_chunk, in_tail)

    def read(
        self, first_position: int, process_index: int = 0, process_count: int = 1
    ) -> tuple[tf.data.Dataset, Callable[[Example], Example]]:
        """Reads a process's share of the stream, without end.

        Args:
            first_position: over all processes; a multiple of process_count.
            process_index: from 0.
            process_count: divides LANES.

        Returns:
            A dataset, and what makes an example of its elements and belongs into the parallel map
            that decodes: the split's own features with ``position`` and ``id`` (the number in the
            split), int64 [].

        Raises:
            UsageError: where process_count does not divide LANES.
        """
        if LANES % process_count:
            raise UsageError(f"the number of processes must divide {LANES}, got {process_count}")
        get = self.split.get
        if get is not None:
            # The end is out of reach, and so is an overflow.
            positions = tf.data.Dataset.range(first_position + process_index, 2**62, process_count)

            def fetch(position: tf.Tensor) -> Example:
                index = self.locate(position)
                return get(index) | {"position": position, "id": index}

            return positions, fetch
        first_epoch, first = divmod(first_position, self.split.size)

        def read_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
            begin = tf.where(epoch == first_epoch, tf.constant(first, tf.int64), 0)
            # The process's positions in the stream, counted from the epoch's first.
            residue = (process_index - epoch * self.split.size) % process_count
            windows = self._read_windows(epoch, begin, residue, process_count)
            return windows.concatenate(self._read_tail(epoch, begin, residue, process_count))

        return tf.data.Dataset.counter(start=first_epoch).flat_map(read_epoch), lambda x: x

    @property
    def _num_windows(self) -> int:
        return self.split.size // WINDOW

    @property
    def _tail_begin(self) -> int:
        return self._num_windows * WINDOW

    @property
    def _tail_size(self) -> int:
        return self.split.size - self._tail_begin

    def _seed(self, use: Use, epoch: tf.Tensor, index: tf.Tensor | int = 0) -> tf.Tensor:
        return for_use(make_seed(self.seed, epoch, index), use)

    def _tail_first(self, epoch: tf.Tensor) -> tf.Tensor:
        """The number of the first example of an epoch's tail, which lies between two chunks."""
        chunks = self._num_windows * LANES
        seed = self._seed(Use.TAIL, epoch)
        return CHUNK * tf.random.stateless_uniform([], seed, 0, chunks + 1, tf.int64)

    def _in_tail(self, epoch: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        order = _permuted(index, self._seed(Use.EXAMPLES, epoch), max(self._tail_size, 1))
        return self._tail_first(epoch) + order

    def _chunk_first(self, epoch: tf.Tensor, chunk: tf.Tensor) -> tf.Tensor:
        chunks = max(self._num_windows, 1) * LANES
        first = CHUNK * _permuted(chunk, self._seed(Use.CHUNKS, epoch), chunks)
        return first + self._tail_size * tf.cast(first >= self._tail_first(epoch), tf.int64)

    def _within(self, epoch: tf.Tensor, chunk: tf.Tensor) -> tf.Tensor:
        """The order of a chunk's examples, int64 [CHUNK]."""
        seed = self._seed(Use.WITHIN, epoch, chunk)
        return _permuted(tf.constant(np.arange(CHUNK)), seed, CHUNK)

    def _read_windows(
        self, epoch: tf.Tensor, begin: tf.Tensor, residue: tf.Tensor, process_count: int
    ) -> tf.data.Dataset:
        lanes = LANES // process_count

        def read_chunk(index: tf.Tensor) -> tf.data.Dataset:
            window, lane = index // lanes, residue + index % lanes * process_count
            chunk = window * LANES + lane
            first, order = self._chunk_first(epoch, chunk), self._within(epoch, chunk)
            ranks = tf.constant(np.arange(CHUNK) * LANES)
            position = epoch * self.split.size + window * WINDOW + lane + ranks

            def shuffled(examples: Example) -> tf.data.Dataset:
                examples = tf.nest.map_structure(lambda x: tf.gather(x, order), examples)
                return tf.data.Dataset.from_tensor_slices(
                    examples | {"position": position, "id": first + order}
                )

            size = tf.constant(CHUNK, tf.int64)
            return self.split.read(first, size).batch(CHUNK, drop_remainder=True).flat_map(shuffled)

        first_window = begin // WINDOW
        already_read = _count_below(begin % WINDOW, residue, process_count)
        return (
            tf.data.Dataset.range(first_window * lanes, self._num_windows * lanes)
            .interleave(
                read_chunk,
                cycle_length=lanes,
                block_length=1,
                num_parallel_calls=min(lanes, _PARALLEL_READS),
                deterministic=True,
            )
            .skip(already_read)
        )

    def _read_tail(
        self, epoch: tf.Tensor, begin: tf.Tensor, residue: tf.Tensor, process_count: int
    ) -> tf.data.Dataset:
        begin = tf.maximum(begin, self._tail_begin)
        begin += (residue - begin) % process_count

        def read_one(j: tf.Tensor) -> tf.data.Dataset:
            index = self._in_tail(epoch, j - self._tail_begin)
            extra = {"position": epoch * self.split.size + j, "id": index}
            return self.split.read(index, tf.constant(1, tf.int64)).map(lambda x: x | extra)

        return tf.data.Dataset.range(begin, self.split.size, process_count).interleave(
            read_one,
            cycle_length=_PARALLEL_READS,
            block_length=1,
            num_parallel_calls=_PARALLEL_READS,
            deterministic=True,
        )


def _count_below(bound: tf.Tensor, residue: tf.Tensor, modulus: int) -> tf.Tensor:
    """How many of 0 … bound − 1 are ``residue`` modulo ``modulus``."""
    return (bound - residue + modulus - 1) // modulus


def _permuted(index: tf.Tensor, seed: tf.Tensor, size: int) -> tf.Tensor:
    """Where a random permutation of 0 … size − 1 takes an index (or each of some)."""
    # tf.random.experimental.index_shuffle would use a few bits of each word of the seed, and pad it
    # with a constant: of 60 epochs, some would have the same order.
    words = tf.random.stateless_uniform([3], seed, None, None, tf.uint32)
    return tf.raw_ops.RandomIndexShuffle(
        index=index, seed=words, max_index=tf.constant(size - 1, tf.int64), rounds=8
    )
