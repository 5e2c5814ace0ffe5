"""A split of a TFDS data set of which every file can be written by itself.

TFDS puts a split's examples into the order of the hashes of their keys, and cuts that into files of
equal length (``tensorflow_datasets.core.writer``). Both are known before any example is read. So a
file is written at once, by any thread, without the buckets on disk that TFDS sorts in; and one that
is there need not be written again. The records are those that TFDS writes, but that the features of
each are in the order of their names, which TFDS leaves to chance: so the bytes are always the same.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, hashing
from tensorflow_datasets.core.utils import shard_utils

_TFRECORD_FRAME = 16
"""Bytes of a record beside its content: its length and two checksums."""


class ShardedSplit:
    """The files of a split.

    Args:
        builder: of the data set.
        name: of the split.
        keys: of the examples, all different; what the builder's generator gives with them.
        example: of (index) → the example, as that gives it. Called by several threads.
        num_shards: at most as many as examples.

    Attributes:
        name: of the split.
        paths: of its files.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        name: str,
        keys: Sequence[str],
        example: Callable[[int], dict[str, Any]],
        num_shards: int,
    ):
        self._features = builder.info.features
        self._serializer = example_serializer.ExampleSerializer(
            self._features.get_serialized_info()
        )
        self._example = example
        self.name = name
        hash_key = hashing.Hasher(name).hash_key
        hashes = [hash_key(key) for key in keys]
        self._order = sorted(range(len(keys)), key=hashes.__getitem__)
        self._ends = shard_utils.get_shard_boundaries(len(keys), num_shards)
        self._template = tfds.core.ShardedFileTemplate(
            split=name,
            dataset_name=builder.name,
            data_dir=builder.data_path,
            filetype_suffix="tfrecord",
        )
        self.paths = self._template.sharded_filepaths(num_shards)

    def missing(self) -> list[int]:
        """The numbers of the files that are not there."""
        return [i for i, path in enumerate(self.paths) if not path.exists()]

    def write(self, shard: int) -> None:
        """Writes a file; it is there whole or not at all."""
        path = os.fspath(self.paths[shard])
        temporary = f"{path}.tmp"
        with tf.io.TFRecordWriter(temporary) as writer:
            for index in self._order[self._begin(shard) : self._ends[shard]]:
                encoded = self._features.encode_example(self._example(index))
                message = self._serializer.get_tf_example(encoded)
                # Otherwise the order of its features would be another one in every process.
                writer.write(message.SerializeToString(deterministic=True))
        _sync(temporary)
        tf.io.gfile.rename(temporary, path, overwrite=True)

    def info(self) -> tfds.core.SplitInfo:
        """What TFDS has to know of the split; all files must be there."""
        num_bytes = sum(path.stat().length for path in self.paths)
        return tfds.core.SplitInfo(
            name=self.name,
            shard_lengths=[end - self._begin(i) for i, end in enumerate(self._ends)],
            num_bytes=num_bytes - _TFRECORD_FRAME * len(self._order),
            filename_template=self._template,
        )

    def _begin(self, shard: int) -> int:
        return self._ends[shard - 1] if shard else 0


def _sync(file: str) -> None:
    # What an object store has taken, it keeps.
    if "://" not in file:
        with open(file, "rb") as written:
            os.fsync(written.fileno())
