"""ImageNet and ImageNet-21k as the official TFRecord files.

Files, features and splits are those of google/automl, efficientnetv2/datasets.py. The files of
ImageNet are written by
https://github.com/tensorflow/tpu/blob/master/tools/datasets/imagenet_to_gcs.py.
"""

import fnmatch
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

from effnetv2_jax.data.sources import MAX_LABELS, Example, Source, Split, fill_up
from effnetv2_jax.data.sources.imagenet_classes import imagenet_ids
from effnetv2_jax.data.sources.tfrecords import open_split
from effnetv2_jax.runtime.errors import UsageError, unknown_name

NUM_CLASSES_21K = 21_843


class _Files(NamedTuple):
    """The files first … end − 1 of those whose names match a pattern; ``meaning`` says which."""

    pattern: str
    first: int = 0
    end: int | None = None
    meaning: str = "all"


_IMAGENET_SPLITS = {
    "train": _Files("train*", 20, None, "those from the 21st on"),
    "minival": _Files("train*", 0, 20, "the first 20"),
    "trainval": _Files("train*"),
    **dict.fromkeys(("eval", "validation", "test"), _Files("val*")),
}


def _imagenet21k_splits(train: str) -> dict[str, _Files]:
    return {
        "train": _Files(train, 20, None, "those from the 21st on"),
        "minival": _Files(train, 16, 20, "the 17th to the 20th"),
        "eval": _Files(train, 0, 16, "the first 16"),
        "trainval": _Files(train),
        "validation": _Files("val*"),
        "test": _Files("test*"),
    }


def is_imagenet_dir(data_dir: str) -> bool:
    """Returns True if a folder has the official TFRecord files of ImageNet (``train-*``)."""
    try:
        return bool(_files_in(data_dir, ["train-*"], ""))
    except UsageError:
        return False


def imagenet_source(data_dir: str) -> Source:
    """Opens ImageNet, ILSVRC 2012. Classes are named by their WordNet ids, in that order.

    The splits are ``train`` (the train files from the 21st on; 1,256,144 examples), ``minival``
    (the first 20; 25,021), ``trainval`` (both; 1,281,167) and ``eval`` (50,000; also
    ``validation`` and ``test``). An example has ``image``, a JPEG string, and ``label``, int64 [].
    Parsing one whose ``image/class/label`` is not in 1…1000 (0 is the background) fails with
    tf.errors.InvalidArgumentError.

    Args:
        data_dir: The folder with the files ``train*`` and ``val*``.

    Raises:
        UsageError: For a folder without train files. ``split`` raises it for an unknown name, a
            split without files, and files that are empty or cut off.
    """
    files = _files_in(
        data_dir,
        ["train*"],
        "put the TFRecord files train-00000-of-01024 … and validation-00000-of-00128 … of ImageNet "
        "there, or prepare it with TFDS",
    )
    split = _splits("imagenet2012", data_dir, files, _IMAGENET_SPLITS, _parse)
    return Source("imagenet2012", imagenet_ids(), split)


def imagenet21k_source(data_dir: str) -> Source:
    """Opens ImageNet-21k: 21,843 classes without names, with several labels per example.

    The train files are ``imagenet21k*``, as in the official code, or ``train*`` if there are none.
    The splits are ``train`` (those from the 21st on; 12,720,275 examples), ``minival`` (the 17th to
    the 20th; 25,089), ``eval`` (the first 16; 100,357), ``trainval`` (all of them), and
    ``validation`` (``val*``) and ``test`` (``test*``) if there are such files. An example has
    ``image``, a JPEG string, and ``label``, int64 [MAX_LABELS], filled up with -1. Parsing one with
    more labels, or with one not in 0…21842, fails with tf.errors.InvalidArgumentError.

    Args:
        data_dir: The folder with the files.

    Raises:
        UsageError: For the same reasons as ``imagenet_source``.
    """
    patterns = ["imagenet21k*", "train*"]
    advice = "put the TFRecord files of ImageNet-21k there, named imagenet21k-…"
    files = _files_in(data_dir, patterns, advice)
    train = next(pattern for pattern in patterns if fnmatch.filter(files, pattern))
    names = tuple(f"class {i}" for i in range(NUM_CLASSES_21K))
    split = _splits("imagenet21k", data_dir, files, _imagenet21k_splits(train), _parse_21k)
    return Source("imagenet21k", names, split, label_shape=(MAX_LABELS,))


def _files_in(data_dir: str, patterns: list[str], advice: str) -> list[str]:
    try:
        # Object stores mark folders with a slash.
        files = sorted(name for name in tf.io.gfile.listdir(data_dir) if not name.endswith("/"))
    except tf.errors.OpError as error:
        raise UsageError(f"data_dir {data_dir!r} cannot be listed: {advice}") from error
    if not any(fnmatch.filter(files, pattern) for pattern in patterns):
        raise UsageError(f"data_dir {data_dir!r} has no files {' or '.join(patterns)}: {advice}")
    return files


def _splits(
    source: str,
    data_dir: str,
    files: list[str],
    splits: Mapping[str, _Files],
    parse: Callable[[tf.Tensor], Example],
) -> Callable[[str], Split]:
    def split(name: str) -> Split:
        if name not in splits:
            raise unknown_name(f"split of {source}", name, splits)
        pattern, first, end, meaning = splits[name]
        found = fnmatch.filter(files, pattern)
        taken = [os.path.join(data_dir, file) for file in found[first:end]]
        if not taken:
            raise UsageError(
                f"no files for split {name!r} of {source}: it takes {meaning} of the files "
                f"{pattern}, and data_dir {data_dir!r} has {len(found)}"
            )
        return open_split(taken, parse, allow_empty_files=False)

    return split


def _parse(record: tf.Tensor) -> Example:
    features = tf.io.parse_single_example(
        record,
        {
            "image/encoded": tf.io.FixedLenFeature([], tf.string),
            "image/class/label": tf.io.FixedLenFeature([], tf.int64),
        },
    )
    label = features["image/class/label"]
    valid = tf.debugging.Assert(
        (label >= 1) & (label <= 1000),
        ["image/class/label must be in 1...1000 (0 is the background), but is", label],
    )
    with tf.control_dependencies([valid]):
        return {"image": features["image/encoded"], "label": label - 1}


def _parse_21k(record: tf.Tensor) -> Example:
    features = tf.io.parse_single_example(
        record,
        {
            "image": tf.io.FixedLenFeature([], tf.string),
            "labels": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
        },
    )
    labels = features["labels"]
    valid = tf.debugging.Assert(
        tf.reduce_all((labels >= 0) & (labels < NUM_CLASSES_21K)),
        [f"labels must be in 0...{NUM_CLASSES_21K - 1}, but are", labels],
        summarize=MAX_LABELS,
    )
    with tf.control_dependencies([valid]):
        return {"image": features["image"], "label": fill_up(labels)}
