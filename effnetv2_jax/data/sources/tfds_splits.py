"""Splits of TensorFlow Datasets: their names and slices, read into memory or from files."""

import contextlib
import dataclasses
import functools
import itertools
import threading
from collections.abc import Iterator, Mapping

import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from effnetv2_jax.data.sources import Example, Split, fill_up, tfrecords
from effnetv2_jax.runtime.bars import track
from effnetv2_jax.runtime.errors import UsageError, reason

MEMORY_LIMIT = 2**31
"""The largest size in bytes of a split that is read into memory."""

_ROWS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of a data set that are an example's image and label.

    Attributes:
        image: The key of the image.
        label: The key of the label.
        several: Set if an example has a sequence of labels.
        class_names: The names of the classes.
    """

    image: str
    label: str
    several: bool
    class_names: tuple[str, ...]

    @property
    def decoding(self) -> tfds.decode.PartialDecoding:
        """A decoder that leaves out all other features, and leaves images encoded."""
        return tfds.decode.PartialDecoding(
            {self.image: True, self.label: True}, decoders={self.image: tfds.decode.SkipDecoding()}
        )

    def select(self, example: Mapping[str, tf.Tensor]) -> Example:
        """Makes an example of TFDS's."""
        image, label = example[self.image], tf.cast(example[self.label], tf.int64)
        return {"image": image, "label": fill_up(label) if self.several else label}


@dataclasses.dataclass(frozen=True)
class TfdsSplits:
    """The splits of a data set of TFDS whose files exist.

    Attributes:
        name: The name of the data set, for messages.
        builder: The builder of the data set.
        features: The image and the label.
        aliases: Other names of splits, and their meaning in TFDS.
    """

    name: str
    builder: tfds.core.DatasetBuilder
    features: Features
    aliases: Mapping[str, str]

    def open(self, split: str) -> Split:
        """Opens a split, a slice of one, or a sum of these; see ``tfds.tfds_source``."""
        spec, splits = self._resolve(split), self.builder.info.splits
        if not splits:
            raise UsageError(
                f"the folder {str(self.builder.data_dir)!r} of {self.name} holds no data: remove "
                "it, and the data set is prepared again, or copy the data there"
            )
        try:
            instructions = splits[spec].file_instructions
        except (KeyError, ValueError, NotImplementedError) as error:
            allowed = ", ".join(dict.fromkeys([*self.aliases, *splits]))
            raise UsageError(
                f"unknown split {spec!r} of {self.name}: allowed are {allowed}, slices of them "
                "such as 'train[:80%]' and sums such as 'train+test'"
            ) from error
        if not instructions or min(i.take for i in instructions) <= 0:
            raise UsageError(f"split {spec!r} of {self.name} has no examples: take a longer slice")
        # TFDS does not know the size of a slice.
        bytes_per_example = {
            str(path): info.num_bytes / info.num_examples
            for info in splits.values()
            if info.num_examples
            for path in info.filepaths
        }
        num_bytes = sum(i.take * bytes_per_example[i.filename] for i in instructions)
        if num_bytes > MEMORY_LIMIT:
            return self._in_files(spec, instructions)
        return self._in_memory(spec, sum(i.take for i in instructions))

    def _resolve(self, split: str) -> str:
        """Translates a split into TFDS's terms, without blanks."""
        splits = self.builder.info.splits
        meanings = {key: key for key in splits} | dict(self.aliases)

        def translate(part: str) -> str:
            base, bracket, rest = part.partition("[")
            meaning = meanings.get(base, base)
            if bracket and meaning not in splits and base in meanings:
                whole = ", ".join(key for key, other in meanings.items() if other in splits)
                raise UsageError(
                    f"no slice {part!r} of {self.name}, where {base} means {meaning}: allowed are "
                    f"slices of {whole}"
                )
            return meaning + bracket + rest

        return "+".join(translate(part) for part in "".join(split.split()).split("+"))

    def _in_files(self, spec: str, instructions: list) -> Split:
        builder, decoding = self.builder, self.features.decoding
        if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
            raise UsageError(
                f"split {spec!r} of {self.name} is too large for memory and is not in TFRecord "
                f"files but in {builder.info.file_format.value}: prepare it with "
                "--file_format=tfrecord"
            )
        for one, other in itertools.pairwise(instructions):
            if one.skip + one.take != one.examples_in_shard or other.skip:
                raise UsageError(
                    f"split {spec!r} of {self.name} is too large for memory and not one row of "
                    "records: add up whole splits only, or take one slice"
                )
        with _without_warnings():
            extracted = decoding.extract_features(builder.info.features)

        def parse(record: tf.Tensor) -> Example:
            example = extracted.deserialize_example(record, decoders=decoding.decoders)
            return self.features.select(example)

        start = instructions[0].skip
        return tfrecords.open_split(
            [i.filename for i in instructions],
            parse,
            start=start,
            stop=start + sum(i.take for i in instructions),
        )

    def _in_memory(self, spec: str, size: int) -> Split:
        # The next stage's pipeline starts in another thread.
        lock = threading.Lock()

        @functools.cache
        def rows() -> Example:
            # Eagerly, even while a tf.data function is traced.
            with tf.init_scope():
                return self._read_all(spec, size)

        @tf.autograph.experimental.do_not_convert
        def get(index: tf.Tensor) -> Example:
            with lock:
                read = rows()
            return {key: tf.gather(column, index) for key, column in read.items()}

        describe = f"example {{}} of {spec} of {self.name}".format
        whole = f"{spec} of {self.builder.info.full_name}", str(self.builder.info.dataset_size)
        return Split.of_examples(size, get, describe, lambda: whole)

    def _read_all(self, spec: str, size: int) -> Example:
        """Reads ``image`` string [size] and ``label`` int64 [size] or [size, MAX_LABELS]."""
        with _without_warnings():
            dataset = self.builder.as_dataset(
                split=spec,
                decoders=self.features.decoding,
                read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
                shuffle_files=False,
            )
        batches = dataset.map(self.features.select).batch(_ROWS_AT_ONCE)
        try:
            parts = list(track(batches, f"reading {self.name}", total=-(-size // _ROWS_AT_ONCE)))
        except (tf.errors.NotFoundError, tf.errors.DataLossError) as error:
            raise UsageError(
                f"split {spec!r} of {self.name} cannot be read ({reason(error)}): remove the "
                f"folder {str(self.builder.data_dir)!r} and prepare it again"
            ) from error
        rows = tf.nest.map_structure(lambda *columns: tf.concat(columns, axis=0), *parts)
        if len(rows["image"]) != size:
            raise UsageError(
                f"split {spec!r} of {self.name} should have {size} examples, but "
                f"{self.builder.data_dir} has {len(rows['image'])}: remove that folder and "
                "prepare it again"
            )
        return rows


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Drops PartialDecoding's warnings about TFDS's own use of a deprecated property."""

    def is_not_tfds(record) -> bool:
        return "/tensorflow_datasets/" not in record.pathname

    # The verbosity stays as it is, because other threads may log meanwhile.
    logger = logging.get_absl_logger()
    logger.addFilter(is_not_tfds)
    try:
        yield
    finally:
        logger.removeFilter(is_not_tfds)
