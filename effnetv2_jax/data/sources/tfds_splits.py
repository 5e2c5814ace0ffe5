"""Splits of TensorFlow Datasets: their names and slices, read into memory or from files."""

import contextlib
import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from effnetv2_jax.data.sources import Example, Split, fill_up, tfrecords
from effnetv2_jax.runtime.bars import track
from effnetv2_jax.runtime.errors import UsageError

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
        label = tf.cast(example[self.label], tf.int64)
        return {
            "image": example[self.image],
            "label": fill_up(label) if self.several else label,
        }


def resolve(name: str, splits: Mapping[str, object], aliases: Mapping[str, str], split: str) -> str:
    """Translates the name of a split into TFDS's terms, without blanks.

    Args:
        name: The name of the data set, for messages.
        splits: TFDS's splits.
        aliases: Other names of splits, and their meaning in TFDS.
        split: A split, a slice of one, or a sum of these.

    Raises:
        UsageError: For a slice of something that is itself a slice or a sum.
    """
    meanings = {key: key for key in splits} | dict(aliases)

    def translate(part: str) -> str:
        base, bracket, rest = part.partition("[")
        meaning = meanings.get(base, base)
        if bracket and meaning not in splits and base in meanings:
            whole = ", ".join(key for key, other in meanings.items() if other in splits)
            raise UsageError(
                f"no slice {part!r} of {name}, where {base} means {meaning}: allowed are slices of "
                f"{whole}"
            )
        return meaning + bracket + rest

    return "+".join(translate(part) for part in "".join(split.split()).split("+"))


def open_split(
    name: str,
    builder: tfds.core.DatasetBuilder,
    spec: str,
    features: Features,
    aliases: Mapping[str, str],
    memory_limit: int,
    cache_dir: str | None,
) -> Split:
    """Opens a split; see ``tfds.tfds_source``.

    Args:
        name: The name of the data set, for messages.
        builder: The builder of the data set, whose files exist.
        spec: The split in TFDS's terms, from ``resolve``.
        features: The image and the label.
        aliases: Other names of splits, for messages.
        memory_limit: The largest size in bytes of a split that is read into memory.
        cache_dir: The folder for the index of a larger split.
    """
    instructions = _file_instructions(name, builder.info.splits, aliases, spec)
    if _num_bytes(builder.info.splits, instructions) > memory_limit:
        return _in_files(name, builder, spec, features, instructions, cache_dir)
    return _in_memory(name, builder, spec, features, sum(i.take for i in instructions))


def _file_instructions(
    name: str, splits: tfds.core.SplitDict, aliases: Mapping[str, str], spec: str
) -> list[tfds.core.utils.shard_utils.FileInstruction]:
    """Finds the files of a split, and the records in each of them.

    Raises:
        UsageError: For a split that does not exist or has no examples.
    """
    try:
        instructions = splits[spec].file_instructions
    except (KeyError, ValueError, NotImplementedError) as error:
        allowed = ", ".join(dict.fromkeys([*aliases, *splits]))
        raise UsageError(
            f"unknown split {spec!r} of {name}: allowed are {allowed}, slices of them such as "
            "'train[:80%]' and sums such as 'train+test'"
        ) from error
    if not instructions or min(i.take for i in instructions) <= 0:
        raise UsageError(f"split {spec!r} of {name} has no examples: choose a longer slice")
    return instructions


def _num_bytes(splits: tfds.core.SplitDict, instructions: Iterable) -> float:
    """The size of the records that are read, which TFDS does not know for slices."""
    bytes_per_example = {
        str(path): info.num_bytes / info.num_examples
        for info in splits.values()
        if info.num_examples
        for path in info.filepaths
    }
    return sum(i.take * bytes_per_example[i.filename] for i in instructions)


def _in_files(
    name: str,
    builder: tfds.core.DatasetBuilder,
    spec: str,
    features: Features,
    instructions: list,
    cache_dir: str | None,
) -> Split:
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise UsageError(
            f"split {spec!r} of {name} is too large for memory and is not in TFRecord files but in "
            f"{builder.info.file_format.value}: prepare it with --file_format=tfrecord"
        )
    for one, other in itertools.pairwise(instructions):
        if one.skip + one.take != one.examples_in_shard or other.skip:
            raise UsageError(
                f"split {spec!r} of {name} is too large for memory and not one row of records: "
                "add up whole splits only, or take one slice"
            )

    decoding = features.decoding
    with _without_warnings():
        extracted = decoding.extract_features(builder.info.features)

    def parse(record: tf.Tensor) -> Example:
        return features.select(extracted.deserialize_example(record, decoders=decoding.decoders))

    start = instructions[0].skip
    return tfrecords.open_split(
        [i.filename for i in instructions],
        parse,
        start=start,
        stop=start + sum(i.take for i in instructions),
        cache_dir=cache_dir,
    )


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


def _in_memory(
    name: str, builder: tfds.core.DatasetBuilder, spec: str, features: Features, size: int
) -> Split:
    load = _once(lambda: _read_all(name, builder, spec, features, size))

    @tf.autograph.experimental.do_not_convert
    def get(index: tf.Tensor) -> Example:
        return {key: tf.gather(rows, index) for key, rows in load().items()}

    return Split.of_examples(size, get, describe=f"example {{}} of {spec} of {name}".format)


def _once(make: Callable[[], Example]) -> Callable[[], Example]:
    """Calls ``make`` at the first use, eagerly even while a tf.data function is traced."""
    lock = threading.Lock()

    @functools.cache
    def made() -> Example:
        with tf.init_scope():
            return make()

    def get() -> Example:
        # The next stage's pipeline starts in another thread.
        with lock:
            return made()

    return get


def _read_all(
    name: str, builder: tfds.core.DatasetBuilder, spec: str, features: Features, size: int
) -> Example:
    """Reads a split: ``image`` string [size], ``label`` int64 [size] or [size, MAX_LABELS]."""
    with _without_warnings():
        dataset = builder.as_dataset(
            split=spec,
            decoders=features.decoding,
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
            shuffle_files=False,
        )
    batches = dataset.map(features.select).batch(_ROWS_AT_ONCE)
    parts = list(track(batches, f"reading {name}", total=-(-size // _ROWS_AT_ONCE)))
    rows = tf.nest.map_structure(lambda *columns: tf.concat(columns, axis=0), *parts)
    if len(rows["image"]) != size:
        raise UsageError(
            f"split {spec!r} of {name} should have {size} examples, but {builder.data_dir} has "
            f"{len(rows['image'])}: remove that folder and prepare it again"
        )
    return rows
