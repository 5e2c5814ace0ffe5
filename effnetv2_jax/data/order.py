"""The order of examples and their seeds: the same for any number of processes.

Position p of the endless stream is in epoch p div size. Batch k holds the positions k·batch …
(k + 1)·batch − 1, and process i of n reads those that are i modulo n. The example at a position is
a function of (seed, position) only, so a run can start anywhere at once.

An epoch of a split with random access is one permutation. Any other epoch is read in windows of 64
lanes. Each lane reads a chunk of 64 consecutive examples, and position j of the window is taken
from lane j mod 64. The chunks are a permutation of the split's chunks, and so are the examples
within a chunk. The rest, which is less than a window and another part of the split in every epoch,
is read one by one at the end of the epoch.

Random numbers come from seeds that are functions of (seed of the run, use, epoch, index).
TensorFlow's stateless operations scramble the two words of a seed (with Philox) before they draw,
so seeds need to be distinct, not random. They are therefore sums, as hashes would cost several
operations per image.
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from effnetv2_jax.data.sources import Example, Split
from effnetv2_jax.runtime.errors import UsageError

LANES = 64
CHUNK = 64
WINDOW = LANES * CHUNK

# Files that are open at the same time while examples are read one by one.
_PARALLEL_READS = 16


class Use(enum.IntEnum):
    """The uses of random numbers."""

    EXAMPLES = 0
    CHUNKS = 1
    WITHIN = 2
    TAIL = 3
    CROP = 4
    FLIP = 5
    AUGMENT = 6
    # Another name of CHUNKS: what is drawn by class is not read in chunks.
    CLASSES = 1


# 2⁶⁴ over the golden ratio, as int64. Whole multiples lie far apart, so no two runs with seeds of a
# reasonable size share a first word within 10¹² epochs.
_SPREAD = 0x9E3779B97F4A7C15 - 2**64


def make_seed(run_seed: int, epoch: tf.Tensor, index: tf.Tensor | int) -> tf.Tensor:
    """Returns the seed of an example or a chunk, int64 [2], from which ``for_use`` makes others.

    Args:
        run_seed: The seed of the run.
        epoch: The number of the epoch, int64 [].
        index: The number of the example or the chunk, int64 [] or an int.
    """
    # Wrapped around by hand: Python's integers do not overflow, those of int64 do.
    first = (run_seed * _SPREAD + 2**63) % 2**64 - 2**63
    return tf.stack([first + epoch * len(Use), tf.cast(index, tf.int64)])


def for_use(seed: tf.Tensor, use: Use) -> tf.Tensor:
    """Returns the seed int64 [2] for one use."""
    return seed + tf.constant((use, 0), tf.int64)


@dataclasses.dataclass(frozen=True)
class Order:
    """The order in which a run reads a split.

    Attributes:
        split: The split of a source.
        seed: The seed of the run.
    """

    split: Split
    seed: int

    def epoch(self, position: tf.Tensor | int) -> tf.Tensor | int:
        """Returns how often the example at a position of the stream came before it."""
        return position // self.split.size

    def locate(self, position: tf.Tensor | int) -> tf.Tensor:
        """Returns the number in the split of the example at a position of the stream, int64 []."""
        position = tf.convert_to_tensor(position, tf.int64)
        epoch, j = position // self.split.size, position % self.split.size
        if self.split.random_access:
            return permuted(j, self._seed(Use.EXAMPLES, epoch), self.split.size)
        lane, rank = j % WINDOW % LANES, j % WINDOW // LANES
        chunk = tf.minimum(j // WINDOW, max(self._num_windows - 1, 0)) * LANES + lane
        in_chunk = self._chunk_first(epoch, chunk) + self._within(epoch, chunk, rank)
        in_tail = self._in_tail(epoch, tf.maximum(j - self._tail_begin, 0))
        return tf.where(j < self._tail_begin, in_chunk, in_tail)

    def elements(
        self,
        first_position: tf.Tensor | int,
        process_index: tf.Tensor | int = 0,
        process_count: int = 1,
    ) -> tf.data.Dataset:
        """Reads a process's share of the stream, without end.

        Args:
            first_position: The position to start from, over all processes. A multiple of
                process_count.
            process_index: The number of this process, from 0.
            process_count: The number of processes, which divides LANES.

        Returns:
            A dataset of elements for ``fetch``. Each has ``position``, int64 [].

        Raises:
            UsageError: If process_count does not divide LANES.
        """
        if LANES % process_count:
            raise UsageError(f"the number of processes must divide {LANES}, got {process_count}")
        if self.split.random_access:
            # The end is out of reach, and so is an overflow.
            share = tf.data.Dataset.range(first_position + process_index, 2**62, process_count)
            return share.map(lambda position: {"position": position})
        first_epoch, first = first_position // self.split.size, first_position % self.split.size

        # AutoGraph would find nothing to convert, and take its time.
        @tf.autograph.experimental.do_not_convert
        def read_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
            begin = tf.where(epoch == first_epoch, tf.cast(first, tf.int64), 0)
            # The process's positions in the stream, counted from the epoch's first.
            residue = (process_index - epoch * self.split.size) % process_count
            windows = self._read_windows(epoch, begin, residue, process_count)
            return windows.concatenate(self._read_tail(epoch, begin, residue, process_count))

        return tf.data.Dataset.counter(start=first_epoch).flat_map(read_epoch)

    def fetch(self, element: Example) -> Example:
        """Makes an example of an element. It belongs into the parallel map that decodes.

        It has ``position``, ``id`` (its number in the split), int64 [], and ``seed``, int64 [2].
        """
        position = element["position"]
        number = self.locate(position) if self.split.random_access else element["id"]
        example = self.split.parse(element.get("record", number))
        seed = make_seed(self.seed, self.epoch(position), number)
        return example | {"position": position, "id": number, "seed": seed}

    @property
    def _num_windows(self) -> int:
        return self.split.size // WINDOW

    @property
    def _tail_begin(self) -> int:
        return self._num_windows * WINDOW

    def _seed(self, use: Use, epoch: tf.Tensor, index: tf.Tensor | int = 0) -> tf.Tensor:
        return for_use(make_seed(self.seed, epoch, index), use)

    def _tail_first(self, epoch: tf.Tensor) -> tf.Tensor:
        """The number of the first example of an epoch's tail, which lies between two chunks."""
        chunks = self._num_windows * LANES
        seed = self._seed(Use.TAIL, epoch)
        return CHUNK * tf.random.stateless_uniform([], seed, 0, chunks + 1, tf.int64)

    def _in_tail(self, epoch: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        size = self.split.size - self._tail_begin
        order = permuted(index, self._seed(Use.EXAMPLES, epoch), max(size, 1))
        return self._tail_first(epoch) + order

    def _chunk_first(self, epoch: tf.Tensor, chunk: tf.Tensor) -> tf.Tensor:
        chunks = max(self._num_windows, 1) * LANES
        first = CHUNK * permuted(chunk, self._seed(Use.CHUNKS, epoch), chunks)
        tail = self.split.size - self._tail_begin
        return first + tail * tf.cast(first >= self._tail_first(epoch), tf.int64)

    def _within(self, epoch: tf.Tensor, chunk: tf.Tensor, rank: tf.Tensor) -> tf.Tensor:
        """The place in a chunk of the example that is read at a rank, or of several."""
        return permuted(rank, self._seed(Use.WITHIN, epoch, chunk), CHUNK)

    def _read_windows(
        self, epoch: tf.Tensor, begin: tf.Tensor, residue: tf.Tensor, process_count: int
    ) -> tf.data.Dataset:
        lanes = LANES // process_count

        def read_chunk(index: tf.Tensor) -> tf.data.Dataset:
            window, lane = index // lanes, residue + index % lanes * process_count
            chunk = window * LANES + lane
            ranks = tf.constant(np.arange(CHUNK))
            first, order = self._chunk_first(epoch, chunk), self._within(epoch, chunk, ranks)
            position = epoch * self.split.size + window * WINDOW + lane + ranks * LANES

            extra = {"position": position, "id": first + order}
            row = read_row(self.split, first, tf.constant(CHUNK, tf.int64))
            return row.map(lambda records: {"record": tf.gather(records, order)} | extra).unbatch()

        chunks = tf.data.Dataset.range(begin // WINDOW * lanes, self._num_windows * lanes)
        # As many of 0 … begin % WINDOW − 1 are ``residue`` modulo process_count.
        already_read = (begin % WINDOW - residue + process_count - 1) // process_count
        return chunks.interleave(
            read_chunk,
            cycle_length=lanes,
            block_length=1,
            num_parallel_calls=min(lanes, _PARALLEL_READS),
            deterministic=True,
        ).skip(already_read)

    def _read_tail(
        self, epoch: tf.Tensor, begin: tf.Tensor, residue: tf.Tensor, process_count: int
    ) -> tf.data.Dataset:
        begin = tf.maximum(begin, self._tail_begin)
        begin += (residue - begin) % process_count

        def read_at(j: tf.Tensor) -> tf.data.Dataset:
            index = self._in_tail(epoch, j - self._tail_begin)
            extra = {"position": epoch * self.split.size + j, "id": index}
            one = read_one(self.split, index)
            return one.map(lambda record: {"record": record} | extra)

        return tf.data.Dataset.range(begin, self.split.size, process_count).interleave(
            read_at,
            cycle_length=_PARALLEL_READS,
            block_length=1,
            num_parallel_calls=_PARALLEL_READS,
            deterministic=True,
        )


def attempt(
    function: Callable[..., Any],
    element: Any,
    otherwise: Callable[..., tf.data.Dataset],
) -> tf.data.Dataset:
    """Returns a dataset of one element: the result of a function, or another if it raises.

    TensorFlow's decoders raise, and a graph cannot catch an exception. Only a dataset can ignore
    one, so the function runs in a dataset of its own. Iterate over it within ``interleave``:
    ``get_single_element`` costs up to 1 ms, as it sets up the function for each call.

    Args:
        function: A function of the element.
        element: A tensor, or a tuple or dictionary of tensors.
        otherwise: A function of the element. It returns a dataset, of which the first element is
            taken if ``function`` raises.
    """
    once = tf.data.Dataset.from_tensors(element)
    return once.map(function).ignore_errors().concatenate(once.flat_map(otherwise)).take(1)


def read_row(split: Split, first: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
    """Returns a dataset of one element: ``count`` consecutive records, stacked.

    A record that cannot be read, such as one with a wrong checksum, is replaced by an empty string,
    for which ``split.parse`` fails.
    """

    def whole(first: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        return split.records(first, count).batch(count, drop_remainder=True).get_single_element()

    def one_by_one(first: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
        numbers = tf.data.Dataset.range(first, first + count)
        return numbers.flat_map(lambda number: read_one(split, number)).batch(count)

    return attempt(whole, (first, count), one_by_one)


def read_one(split: Split, number: tf.Tensor) -> tf.data.Dataset:
    """Returns a dataset of one record; see ``read_row``."""
    one = tf.constant(1, tf.int64)
    spec = split.records(number, one).element_spec
    return attempt(
        lambda number: split.records(number, one).get_single_element(),
        number,
        lambda number: tf.data.Dataset.from_tensors(tf.zeros(spec.shape, spec.dtype)),
    )


def permuted(index: tf.Tensor, seed: tf.Tensor, size: tf.Tensor | int) -> tf.Tensor:
    """The place of an index (or of each of several) in a random permutation of 0 … size − 1."""
    # tf.random.experimental.index_shuffle would use only a few bits of each word of the seed and
    # pad it with a constant. Of 60 epochs, some would have the same order.
    words = tf.random.stateless_uniform([3], seed, None, None, tf.uint32)
    return tf.raw_ops.RandomIndexShuffle(
        index=index, seed=words, max_index=tf.convert_to_tensor(size - 1, tf.int64), rounds=8
    )
