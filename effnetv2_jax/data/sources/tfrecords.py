"""Random access into TFRecord files: a split that can be read from any example on.

A TFRecord file has no table of its records. An index is therefore read from the headers of the
records once, and kept in a cache. The format of a record
(https://www.tensorflow.org/tutorials/load_data/tfrecord): the length as uint64, its checksum (4
bytes), the data, its checksum (4 bytes).
"""

import dataclasses
import hashlib
import json
import pathlib
import struct
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import numpy as np
import tensorflow as tf
from absl import logging

from effnetv2_jax.data.sources import Example, Split, digest
from effnetv2_jax.runtime.bars import track
from effnetv2_jax.runtime.errors import UsageError, reason
from effnetv2_jax.runtime.files import cache_folder, whole_file

_HEADER_BYTES = 12
_FRAME_BYTES = 16
_MAX_BUFFER_BYTES = 8 << 20
# Many, because reading headers is waiting for the disk or the network.
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class RecordIndex:
    """The places of the records of some files, as if the files were one after the other.

    Attributes:
        files: The names of the files, in order.
        bases: The byte at which each file begins, int64 [files].
        positions: The byte at which each record begins, and the end of the last one, int64
            [records + 1].
    """

    files: tuple[str, ...]
    bases: np.ndarray
    positions: np.ndarray

    def describe(self, record: int) -> str:
        """Returns the file that holds a record, and the record's number in it, from 0."""
        file = np.searchsorted(self.bases, self.positions[record], side="right") - 1
        first = np.searchsorted(self.positions, self.bases[file])
        return f"{self.files[file]}, record {record - first}"


def open_split(
    files: Sequence[str],
    parse: Callable[[tf.Tensor], Example],
    *,
    start: int = 0,
    stop: int | None = None,
    allow_empty_files: bool = True,
) -> Split:
    """Opens the records of some files as a split, in the order of the files.

    Reading a record that does not match its checksum fails with tf.errors.DataLossError.

    Args:
        files: TFRecord files without compression, as paths for ``tf.io.gfile``.
        parse: A function that makes an example of a record, a string scalar.
        start: The first record of the split.
        stop: The record after the last one of the split. None means all.
        allow_empty_files: Accepts files without records if set.

    Raises:
        UsageError: For files that cannot be read, are cut off or empty, and for a range that
            exceeds the records.
    """
    index = build_index(files)
    num_records = len(index.positions) - 1
    sizes = np.diff(index.bases, append=index.positions[-1])
    empty = [file for file, size in zip(files, sizes, strict=True) if size == 0]
    if empty and not allow_empty_files:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        raise UsageError(f"without any records: {', '.join(empty[:3])}{more}; copy them again")
    if num_records == 0:
        raise UsageError(f"no records in {_listed(files)}: copy them again or name other files")
    stop = num_records if stop is None else stop
    if not 0 <= start <= stop <= num_records:
        raise UsageError(
            f"records {start} to {stop} do not exist: {_listed(files)} have {num_records}"
        )
    names = tf.constant(index.files)
    bases = tf.constant(index.bases)
    positions = tf.constant(index.positions[start : stop + 1])

    def row(first: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
        begin, end = positions[first], positions[first + count]
        first_file = tf.searchsorted(bases, [begin], side="right")[0] - 1
        end_file = tf.searchsorted(bases, [end], side="left")[0]
        records = tf.raw_ops.TFRecordDatasetV2(
            filenames=names[first_file:end_file],
            compression_type="",
            # No larger than the row, so that reading a single record stays cheap.
            buffer_size=tf.minimum(end - begin, _MAX_BUFFER_BYTES),
            byte_offsets=tf.maximum(begin - bases[first_file:end_file], 0),
        )
        dataset = tf.data.experimental.from_variant(records, tf.TensorSpec([], tf.string))
        # A file that lost records since it was indexed is an error, not a shorter row.
        whole = tf.data.experimental.assert_cardinality(count)
        return dataset.take(count).apply(whole)

    def records(first: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
        first, count = tf.cast(first, tf.int64), tf.cast(count, tf.int64)
        if tf.executing_eagerly():
            # tf.data serialises an outermost dataset. TensorFlow 2.21 cannot do that with offsets.
            return tf.data.Dataset.from_tensors((first, count)).flat_map(row)
        return row(first, count)

    return Split(
        size=stop - start,
        records=records,
        parse=parse,
        describe=lambda example: index.describe(start + example),
        # The sizes of a million records are as good as names.
        fingerprint=lambda: (digest([np.diff(index.positions[start : stop + 1]).tobytes()]), ""),
    )


def build_index(files: Sequence[str]) -> RecordIndex:
    """Finds the beginnings of records, in the cache if the files have not changed since.

    The cache is in ``files.cache_folder``. If that cannot be written, the index is not kept.

    Args:
        files: At least one TFRecord file without compression.

    Raises:
        UsageError: For no files, and for a file that cannot be read or is cut off.
    """
    if not files:
        raise UsageError("no TFRecord files given: name at least one")
    with ThreadPoolExecutor(_THREADS) as pool:
        stats = list(pool.map(_stat, files))
        sizes = np.array([size for size, _ in stats], np.int64)
        ends = np.cumsum(sizes)
        bases = ends - sizes
        key = hashlib.sha256(json.dumps([list(files), stats]).encode()).hexdigest()
        cache = cache_folder() / f"tfrecords-{key[:32]}.npz"
        positions = _load(cache, ends[-1])
        if positions is None:
            logging.info("indexing the records of %s", _listed(files))
            parts = pool.map(_record_starts, files, sizes.tolist())
            starts = zip(bases, track(parts, "indexing files", len(files)), strict=True)
            positions = np.concatenate([*(base + start for base, start in starts), ends[-1:]])
            try:
                cache.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(cache) as temporary:
                    np.savez(temporary, positions=positions)
            except OSError as error:
                logging.warning("the index %s cannot be kept for the next time: %s", cache, error)
    return RecordIndex(tuple(files), bases, positions)


def _listed(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else f"{len(files)} files ({files[0]} … {files[-1]})"


def _stat(file: str) -> tuple[int, int]:
    """The size of a file in bytes, and the time of its last change to the second."""
    try:
        stat = tf.io.gfile.stat(file)
    except tf.errors.OpError as error:
        raise UsageError(f"TFRecord file {file} cannot be read: {reason(error)}") from error
    if stat.is_directory:
        raise UsageError(f"{file} is a folder, not a TFRecord file: move it elsewhere")
    return stat.length, stat.mtime_nsec


def open_binary(file: str) -> IO[bytes]:
    """Opens a file on this machine or in a bucket, to read from anywhere in it."""
    # GFile reads half a MiB for the 12 bytes of a header, which pays only over a network.
    return tf.io.gfile.GFile(file, "rb") if "://" in file else open(file, "rb", buffering=0)


def _record_starts(file: str, size: int) -> np.ndarray:
    """The byte at which each record of a file begins, int64 [records]."""
    starts: list[int] = []
    start = 0
    try:
        with open_binary(file) as stream:
            while start < size:
                stream.seek(start)
                header = stream.read(_HEADER_BYTES)
                end = start + _FRAME_BYTES
                if len(header) == _HEADER_BYTES:
                    end += struct.unpack_from("<Q", header)[0]
                if end > size:
                    raise UsageError(
                        f"TFRecord file {file} is cut off: its record {len(starts)} would end at "
                        f"byte {end}, but the file has {size} bytes; copy it again"
                    )
                starts.append(start)
                start = end
    except (OSError, tf.errors.OpError) as error:
        raise UsageError(f"TFRecord file {file} cannot be read: {reason(error)}") from error
    return np.array(starts, np.int64)


def _load(cache: pathlib.Path, num_bytes: int) -> np.ndarray | None:
    """The positions in a cache file, None if there is none that can be used."""
    try:
        with np.load(cache, allow_pickle=False) as arrays:
            positions = arrays["positions"]
        if positions.dtype != np.int64 or positions.ndim != 1 or positions[-1:] != [num_bytes]:
            raise ValueError("it does not fit its files")
        return positions
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("the index %s is broken (%s) and is made again", cache, error)
    return None
