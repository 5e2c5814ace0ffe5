"""TensorFlow Datasets as sources: named ones with the splits of the literature, and any other.

A new named data set is a line in ``TFDS_DATASETS``.
"""

import contextlib
import dataclasses
import difflib
import functools
import itertools
import re
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from effnetv2_jax.data.sources.base import MAX_LABELS, Example, Source, Split
from effnetv2_jax.data.sources.tfrecords import open_split
from effnetv2_jax.runtime.bars import track
from effnetv2_jax.runtime.errors import UsageError, unknown_name

MEMORY_LIMIT = 2**31
"""Splits of at most so many bytes are read into memory."""

PREFIX = "tfds:"
"""What comes before the name of a data set that has no entry in ``TFDS_DATASETS``."""

_ROWS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class TfdsDataset:
    """What is to know of a data set of TFDS.

    Attributes:
        tfds_name: what ``tfds.builder`` calls it: name[/config][:version].
        splits: names of splits → what they mean in TFDS. They go before TFDS's own.
        label: the label's feature; None means the only ClassLabel, or of several the one named
            ``label``.
        otherwise: what else a person can do who does not have it.
    """

    tfds_name: str
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    label: str | None = None
    otherwise: str = ""


TFDS_DATASETS: dict[str, TfdsDataset] = {
    "cifar10": TfdsDataset("cifar10"),
    "cifar100": TfdsDataset("cifar100"),
    # Transfer results are of models trained on both, and tested on test.
    "oxford_flowers102": TfdsDataset("oxford_flowers102", splits={"trainval": "train+validation"}),
    "cars196": TfdsDataset("cars196"),
    # One split of 3,670 examples and no customary way to divide it: slices of train.
    "tf_flowers": TfdsDataset("tf_flowers"),
    # The 25,021 of the official minival are other images: TFDS shuffled the files its own way.
    "imagenet2012": TfdsDataset(
        "imagenet2012",
        splits={
            "train": "train[25021:]",
            "minival": "train[:25021]",
            "trainval": "train",
            "eval": "validation",
        },
        otherwise=", use `python -m launch.prepare_imagenet`, or point data.dir at the official "
        "TFRecords",
    ),
    "imagenet2012_real": TfdsDataset(
        "imagenet2012_real", splits={"eval": "validation"}, label="real_label"
    ),
    "imagenet_v2": TfdsDataset("imagenet_v2/matched-frequency"),
}


def open_tfds(
    name: str,
    data_dir: str | None,
    *,
    memory_limit: int = MEMORY_LIMIT,
    cache_dir: str | None = None,
) -> Source:
    """Opens a data set of TFDS by name.

    Args:
        name: a name in ``TFDS_DATASETS``, or ``tfds:`` and what ``tfds.builder`` calls it, such as
            'tfds:mnist' or 'tfds:imagenet_v2/threshold-0.7:3.0.0'.
        data_dir: where TFDS keeps its files; None means its default (``TFDS_DATA_DIR`` or
            ``~/tensorflow_datasets``).
        memory_limit: as in ``tfds_source``.
        cache_dir: as in ``tfds_source``.

    Raises:
        UsageError: for an unknown name, and as ``tfds_source``.
    """
    if name.startswith(PREFIX):
        dataset = TfdsDataset(name.removeprefix(PREFIX))
    elif name in TFDS_DATASETS:
        dataset = TFDS_DATASETS[name]
    else:
        raise unknown_name("data set", name, [*TFDS_DATASETS, f"{PREFIX}NAME"])
    try:
        builder = tfds.builder(dataset.tfds_name, data_dir=data_dir)
    except Exception as error:  # TFDS raises anything from AssertionError to ImportError.
        raise _cannot_open(name, dataset.tfds_name, error) from error
    return tfds_source(name, builder, dataset, memory_limit=memory_limit, cache_dir=cache_dir)


def tfds_source(
    name: str,
    builder: tfds.core.DatasetBuilder,
    dataset: TfdsDataset | None = None,
    *,
    memory_limit: int = MEMORY_LIMIT,
    cache_dir: str | None = None,
) -> Source:
    """A data set of TFDS, prepared first where it is not on disk and TFDS can do that by itself.

    Splits are those of ``dataset`` and of TFDS, slices ('train[:80%]') and sums
    ('train+validation') of them. Examples are in the order of the files: ``image``, an encoded
    string, and ``label``, int64 [], or where the label is a sequence int64 [MAX_LABELS], filled up
    with -1; reading an example with more labels fails with tf.errors.InvalidArgumentError.

    A split of at most ``memory_limit`` bytes is read into memory, as a whole, when its first
    example is; a larger one is read from its TFRecord files.

    Args:
        name: for messages, and the source's.
        builder: of the data set.
        dataset: what TFDS does not say of it; None means nothing.
        memory_limit: in bytes of a split's examples; a size that TFDS does not know counts as 0.
        cache_dir: as in ``tfrecords.build_index``, for splits larger than that.

    Raises:
        UsageError: for a data set that is not for classification, one that is not on disk and
            cannot be had, and a data_dir that cannot be written; from ``split`` for an unknown or
            empty split, and a large one that is not one row of records in TFRecord files.
    """
    dataset = dataset or TfdsDataset(builder.name)
    _prepare(name, builder, dataset)
    keys = _find_keys(name, builder.info.features, dataset.label)

    @functools.cache
    def open_(spec: str) -> Split:
        instructions = _file_instructions(name, builder.info.splits, dataset.splits, spec)
        if _num_bytes(builder.info.splits, instructions) <= memory_limit:
            return _in_memory(name, builder, spec, keys, sum(i.take for i in instructions))
        return _in_files(name, builder, spec, keys, instructions, cache_dir)

    return Source(
        name=name,
        class_names=keys.class_names,
        split=lambda split: open_(_resolve(name, builder.info.splits, dataset.splits, split)),
        label_shape=(MAX_LABELS,) if keys.several else (),
    )


def _cannot_open(name: str, tfds_name: str, error: Exception) -> UsageError:
    known = tfds.list_builders(with_community_datasets=False)
    base = re.split("[/:]", tfds_name)[0]
    if base in known:
        return UsageError(f"data set {name!r} cannot be opened: {_reason(error)}")
    near = [PREFIX + other for other in difflib.get_close_matches(base, known)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UsageError(
        f"unknown data set {name!r}: {hint}allowed are {PREFIX} and a name from "
        "https://www.tensorflow.org/datasets/catalog"
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 300)}"


def _prepare(name: str, builder: tfds.core.DatasetBuilder, dataset: TfdsDataset) -> None:
    """Makes the data set's files where there are none.

    Raises:
        UsageError: where that cannot be done.
    """
    data_dir = str(builder.data_dir_root)
    command = f"`tfds build {dataset.tfds_name} --data_dir={data_dir}`"
    try:
        if builder.data_path.exists():
            return
        if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            wanted = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split()).rstrip(".")
            raise UsageError(
                f"{name} is not in data_dir {data_dir!r} and TFDS cannot download it: put its "
                f"archives into {data_dir}/downloads/manual ({wanted.replace('. ', '; ')}) and "
                f"prepare it once with {command}{dataset.otherwise}"
            )
        builder.download_and_prepare()
    except UsageError:
        raise
    except Exception as error:  # Each builder is a program of its own, and fails in its own way.
        if isinstance(error, OSError) and error.filename is not None:
            raise UsageError(f"data_dir {data_dir!r} cannot be written: {error}") from error
        raise UsageError(
            f"{name} is not in data_dir {data_dir!r} and cannot be prepared here "
            f"({_reason(error)}): prepare it once with {command} where there is a network, and "
            f"copy it here{dataset.otherwise}"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Keys:
    """Which features of a data set are an example's image and label."""

    image: str
    label: str
    several: bool
    class_names: tuple[str, ...]

    @property
    def decoding(self) -> tfds.decode.PartialDecoding:
        """Leaves out all other features, and leaves images as they are encoded."""
        return tfds.decode.PartialDecoding(
            {self.image: True, self.label: True}, decoders={self.image: tfds.decode.SkipDecoding()}
        )

    def select(self, example: Mapping[str, tf.Tensor]) -> Example:
        label = tf.cast(example[self.label], tf.int64)
        return {
            "image": example[self.image],
            "label": _fill_up(label) if self.several else label,
        }


def _fill_up(labels: tf.Tensor) -> tf.Tensor:
    count = tf.size(labels)
    few = tf.debugging.Assert(
        count <= MAX_LABELS,
        [f"an example may have at most {MAX_LABELS} labels, but one has", count],
    )
    with tf.control_dependencies([few]):
        missing = tf.maximum(MAX_LABELS - count, 0)
        return tf.ensure_shape(tf.pad(labels, [[0, missing]], constant_values=-1), [MAX_LABELS])


def _find_keys(name: str, features: tfds.features.FeatureConnector, label: str | None) -> _Keys:
    by_name = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    # A LabeledImage is an Image too, but a mask.
    images = [key for key, feature in by_name.items() if type(feature) is tfds.features.Image]
    classes = {key: _class_of(feature) for key, feature in by_name.items()}
    labels = [key for key, feature in by_name.items() if feature is classes[key]]
    if label is not None:
        labels = [label]
    elif "label" in labels:
        labels = ["label"]
    found = classes.get(labels[0]) if len(labels) == 1 else None
    if len(images) != 1 or found is None:
        kinds = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in sorted(by_name.items()))
        raise UsageError(
            f"{name} is not a data set for classification: it has features "
            f"{kinds or type(features).__name__}, and needs one Image and one ClassLabel"
        )
    return _Keys(
        image=images[0],
        label=labels[0],
        several=found is not by_name[labels[0]],
        class_names=tuple(found.names),
    )


def _class_of(feature: tfds.features.FeatureConnector) -> tfds.features.ClassLabel | None:
    """The classes of a label or of a sequence of labels."""
    if isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    return feature if isinstance(feature, tfds.features.ClassLabel) else None


def _resolve(
    name: str, splits: Mapping[str, object], aliases: Mapping[str, str], split: str
) -> str:
    """A split in TFDS's terms, without blanks.

    Raises:
        UsageError: for a slice of what is a slice or a sum itself.
    """
    meanings = {key: key for key in splits} | dict(aliases)

    def resolve(part: str) -> str:
        base, bracket, rest = part.partition("[")
        meaning = meanings.get(base, base)
        if bracket and meaning not in splits and base in meanings:
            whole = ", ".join(key for key, other in meanings.items() if other in splits)
            raise UsageError(
                f"no slice {part!r} of {name}, where {base} means {meaning}: allowed are slices of "
                f"{whole}"
            )
        return meaning + bracket + rest

    return "+".join(resolve(part) for part in "".join(split.split()).split("+"))


def _file_instructions(
    name: str, splits: tfds.core.SplitDict, aliases: Mapping[str, str], spec: str
) -> list[tfds.core.utils.shard_utils.FileInstruction]:
    """Which records of which files make up a split.

    Raises:
        UsageError: for a split that is not there, or has no examples.
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
    """How much of the splits is read; TFDS does not say it of slices."""
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
    keys: _Keys,
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

    with _without_warnings():
        features = keys.decoding.extract_features(builder.info.features)

    def parse(record: tf.Tensor) -> Example:
        return keys.select(features.deserialize_example(record, decoders=keys.decoding.decoders))

    start = instructions[0].skip
    return open_split(
        [i.filename for i in instructions],
        parse,
        start=start,
        stop=start + sum(i.take for i in instructions),
        cache_dir=cache_dir,
    )


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """PartialDecoding warns, for each feature, of TFDS's own use of a deprecated property."""

    def is_not_tfds(record) -> bool:
        return "/tensorflow_datasets/" not in record.pathname

    # Not by the verbosity: meanwhile other threads have something to say.
    logger = logging.get_absl_logger()
    logger.addFilter(is_not_tfds)
    try:
        yield
    finally:
        logger.removeFilter(is_not_tfds)


def _in_memory(
    name: str, builder: tfds.core.DatasetBuilder, spec: str, keys: _Keys, size: int
) -> Split:
    load = _once(lambda: _read_all(name, builder, spec, keys, size))

    @tf.autograph.experimental.do_not_convert
    def get(index: tf.Tensor) -> Example:
        return {key: tf.gather(rows, index) for key, rows in load().items()}

    return Split.of_examples(size, get, describe=f"example {{}} of {spec} of {name}".format)


def _once(make: Callable[[], Example]) -> Callable[[], Example]:
    """``make``, called eagerly by whoever comes first, even while a tf.data function is traced."""
    lock = threading.Lock()

    @functools.cache
    def made() -> Example:
        with tf.init_scope():
            return make()

    def get() -> Example:
        # The next stage's pipeline starts in a thread of its own.
        with lock:
            return made()

    return get


def _read_all(
    name: str, builder: tfds.core.DatasetBuilder, spec: str, keys: _Keys, size: int
) -> Example:
    """All examples of a split: ``image`` string [size], ``label`` int64 [size(, MAX_LABELS)]."""
    with _without_warnings():
        dataset = builder.as_dataset(
            split=spec,
            decoders=keys.decoding,
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
            shuffle_files=False,
        )
    batches = dataset.map(keys.select).batch(_ROWS_AT_ONCE)
    parts = list(track(batches, f"reading {name}", total=-(-size // _ROWS_AT_ONCE)))
    rows = tf.nest.map_structure(lambda *columns: tf.concat(columns, axis=0), *parts)
    if len(rows["image"]) != size:
        raise UsageError(
            f"split {spec!r} of {name} should have {size} examples, but {builder.data_dir} has "
            f"{len(rows['image'])}: remove that folder and prepare it again"
        )
    return rows
