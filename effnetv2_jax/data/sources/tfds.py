"""TensorFlow Datasets as sources: named ones with the splits of the literature, and any other.

A new named data set is a line in ``TFDS_DATASETS``.
"""

import dataclasses
import difflib
import re
import textwrap
from collections.abc import Mapping

import tensorflow_datasets as tfds

from effnetv2_jax.data.sources import MAX_LABELS, Source
from effnetv2_jax.data.sources.tfds_splits import Features, TfdsSplits
from effnetv2_jax.runtime.errors import UsageError, reason

PREFIX = "tfds:"
"""The beginning of the name of a data set that has no entry in ``TFDS_DATASETS``."""


@dataclasses.dataclass(frozen=True)
class TfdsDataset:
    """The facts about a data set that TFDS does not know.

    Attributes:
        tfds_name: The name for ``tfds.builder``: name[/config][:version].
        splits: Names of splits and their meaning in TFDS. They go before TFDS's own.
        label: The feature of the label. None means that of TFDS's ``supervised_keys``; without
            these, the only ClassLabel, or of several the one named ``label``.
        otherwise: The end of an error message: other ways to get the data set.
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
    # It has one split of 3,670 examples and no customary way to divide it, so take slices of train.
    "tf_flowers": TfdsDataset("tf_flowers"),
    # The official minival has 25,021 other images, because TFDS shuffled the files its own way.
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


def open_tfds(name: str, data_dir: str | None) -> Source:
    """Opens a data set of TFDS by name.

    Args:
        name: A name in ``TFDS_DATASETS``, or ``tfds:`` and a name for ``tfds.builder``, such as
            'tfds:mnist' or 'tfds:imagenet_v2/threshold-0.7:3.0.0'.
        data_dir: The folder in which TFDS keeps its files. None means its default
            (``TFDS_DATA_DIR`` or ``~/tensorflow_datasets``).

    Raises:
        UsageError: For an unknown name, and for the same reasons as ``tfds_source``.
    """
    dataset = TFDS_DATASETS.get(name) or TfdsDataset(name.removeprefix(PREFIX))
    try:
        builder = tfds.builder(dataset.tfds_name, data_dir=data_dir)
    except Exception as error:  # TFDS raises anything from AssertionError to ImportError.
        raise _cannot_open(name, dataset.tfds_name, error) from error
    return tfds_source(name, builder, dataset)


def tfds_source(
    name: str, builder: tfds.core.DatasetBuilder, dataset: TfdsDataset | None = None
) -> Source:
    """Opens a data set of TFDS. If it is not on disk and TFDS can prepare it, that is done first.

    The splits are those of ``dataset`` and of TFDS, and slices ('train[:80%]') and sums
    ('train+validation') of them. Examples are in the order of the files. They have ``image``, an
    encoded string, and ``label``, int64 [], or int64 [MAX_LABELS] filled up with -1 if the label is
    a sequence. Parsing an example with more labels fails with tf.errors.InvalidArgumentError.

    A split of at most ``tfds_splits.MEMORY_LIMIT`` bytes is read into memory as a whole, as soon as
    one of its examples is needed. A size that TFDS does not know counts as 0. A larger split is
    read from its TFRecord files.

    Args:
        name: The name of the source, also for messages.
        builder: The builder of the data set.
        dataset: The facts that TFDS does not know. None means that there are none.

    Raises:
        UsageError: For a data set that is not for classification or that is neither on disk nor can
            be prepared, and for a data_dir that cannot be written. ``split`` raises it for an
            unknown or empty split, and for a large one that is not one row of records in TFRecord
            files.
    """
    dataset = dataset or TfdsDataset(builder.name)
    _prepare(name, builder, dataset)
    features = _find_features(name, builder.info, dataset.label)
    return Source(
        name=name,
        class_names=features.class_names,
        split=TfdsSplits(name, builder, features, dataset.splits).open,
        label_shape=(MAX_LABELS,) if features.several else (),
    )


def _cannot_open(name: str, tfds_name: str, error: Exception) -> UsageError:
    known = tfds.list_builders(with_community_datasets=False)
    if (base := re.split("[/:]", tfds_name)[0]) in known:
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
    """Makes the files of the data set if there are none."""
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
    except Exception as error:  # Each builder fails in its own way.
        if isinstance(error, OSError) and error.filename is not None:
            raise UsageError(f"data_dir {data_dir!r} cannot be written: {reason(error)}") from error
        raise UsageError(
            f"{name} is not in data_dir {data_dir!r} and cannot be prepared here "
            f"({_reason(error)}): prepare it once with {command} on a machine with a network, and "
            f"copy it here{dataset.otherwise}"
        ) from error


def _find_features(name: str, info: tfds.core.DatasetInfo, label: str | None) -> Features:
    """Finds the image and the label: those that TFDS names, or the only ones."""

    def class_of(feature: tfds.features.FeatureConnector) -> tfds.features.ClassLabel | None:
        if isinstance(feature, tfds.features.Sequence):
            feature = feature.feature
        return feature if isinstance(feature, tfds.features.ClassLabel) else None

    features = info.features
    by_name = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    # A LabeledImage is an Image too, but it is a mask.
    images = [key for key, feature in by_name.items() if type(feature) is tfds.features.Image]
    classes = {key: class_of(feature) for key, feature in by_name.items()}
    labels = [key for key, feature in by_name.items() if feature is classes[key]]
    own_image, own_label, *_ = info.supervised_keys or (None, None)
    if own_image in images:
        images = [own_image]
    if label or own_label:
        labels = [label or str(own_label)]
    elif "label" in labels:
        labels = ["label"]
    found = classes.get(labels[0]) if len(labels) == 1 else None
    if len(images) != 1 or found is None:
        kinds = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in sorted(by_name.items()))
        raise UsageError(
            f"{name} is not a data set for classification: it has features "
            f"{kinds or type(features).__name__}, and needs one Image and one ClassLabel, or "
            f"supervised_keys that name these (its own are {info.supervised_keys})"
        )
    several = found is not by_name[labels[0]]
    return Features(images[0], labels[0], several, tuple(found.names))
