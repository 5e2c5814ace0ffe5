"""A split of a TFDS data set whose files can be written independently of each other.

TFDS sorts the examples of a split by the hashes of their keys, and cuts them into files of equal
length (``tensorflow_datasets.core.writer``). Both are known before any example is read. So a file
can be written at once, by any thread, without the buckets on disk with which TFDS sorts. A file
that exists is not written again. The records are TFDS's, except that the features of each are in
the order of their names. TFDS leaves that order to chance; here the bytes are always the same.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, hashing
from tensorflow_datasets.core.utils import shard_utils

_TFRECORD_FRAME = 16
"""The bytes of a record besides its content: its length and two checksums."""


class ShardedSplit:
    """The files of a split.

    Args:
        builder: The builder of the data set.
        name: The name of the split.
        keys: The keys of the examples that the builder's generator would yield, all different.
        example: A function of an index that returns an example as that generator would yield it.
            Several threads call it.
        num_shards: The number of files, at most that of examples.

    Attributes:
        name: The name of the split.
        paths: The paths of its files.
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
        """Returns the numbers of the files that do not exist."""
        return [i for i, path in enumerate(self.paths) if not path.exists()]

    def write(self, shard: int) -> None:
        """Writes a file, which appears whole or not at all."""
        path = os.fspath(self.paths[shard])
        temporary = f"{path}.tmp"
        with tf.io.TFRecordWriter(temporary) as writer:
            for index in self._order[self._begin(shard) : self._ends[shard]]:
                encoded = self._features.encode_example(self._example(index))
                message = self._serializer.get_tf_example(encoded)
                # Otherwise the order of its features would differ from process to process.
                writer.write(message.SerializeToString(deterministic=True))
        _sync(temporary)
        tf.io.gfile.rename(temporary, path, overwrite=True)

    def info(self) -> tfds.core.SplitInfo:
        """Returns the description of the split for TFDS. All files must exist."""
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
    # An object store needs no flush: it keeps what it has accepted.
    if "://" not in file:
        with open(file, "rb") as written:
            os.fsync(written.fileno())
