"""Time the input pipeline: ``python -m effnetv2_jax.benchmark input --sizes=128,171,300``.

Every image size is a stage of progressive learning. For each, prints the images/s of the whole
pipeline with and without augmentation, and the time that each step of an image takes one core.
Without ``--dataset`` it makes JPEGs of its own. ``--preview=FILE`` draws images of each stage
instead.
"""

import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from importlib import metadata

import numpy as np
import tensorflow as tf
from absl import flags

from effnetv2_jax.benchmarks.markdown import row, rule
from effnetv2_jax.benchmarks.timing.photographs import photographs
from effnetv2_jax.data import decoding, images, pipeline
from effnetv2_jax.data.order import Order
from effnetv2_jax.data.sources import Example, Split
from effnetv2_jax.data.sources.registry import get_source
from effnetv2_jax.preprocessing import Preprocessing, get_preprocessing
from effnetv2_jax.progressive import Stage
from effnetv2_jax.runtime.bars import track
from effnetv2_jax.runtime.errors import UsageError, reason

DATASET = flags.DEFINE_string(
    "dataset", None, "Data set, as a config's data.name, e.g. folder:PATH. Default: made-up JPEGs."
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of data sets, as a config's data.dir.")
SPLIT = flags.DEFINE_string("split", "train", "Split of the data set.")
JPEG_SIZE = flags.DEFINE_list(
    "jpeg_size", ["500", "375"], "Width and height in px of the made-up JPEGs."
)
SIZES = flags.DEFINE_list(
    "sizes", ["128", "171", "214", "257", "300"], "Image sizes of the stages, in px."
)
MAGNITUDES = flags.DEFINE_list(
    "magnitudes", ["5", "10"], "RandAugment's magnitude in the first and the last stage."
)
AUGMENTATION = flags.DEFINE_string("augmentation", "randaugment", "Augmentation, as in a config.")
LAYERS = flags.DEFINE_integer(
    "randaugment_layers", 2, "Operations of RandAugment per image.", lower_bound=1
)
PREPROCESSING = flags.DEFINE_string("preprocessing", "v2", "Input family.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images per batch.", lower_bound=1)
NUM_BATCHES = flags.DEFINE_integer("num_batches", 16, "Batches per measurement.", lower_bound=2)
REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements, of which the median counts.", 5)
THREADS = flags.DEFINE_integer("threads", None, "Threads. Default: one per core.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of order, crops and augmentation.")
PREVIEW = flags.DEFINE_string("preview", None, "Write a contact sheet to this file, and end.")
COLUMNS = flags.DEFINE_integer("columns", 8, "Images per row of the preview.", lower_bound=1)

STEPS = ("read", "entropy", "decode", "resize", "augment")
"""``entropy`` decodes only the last row of the crop. For a JPEG, that is Huffman decoding."""


def main() -> None:
    family = get_preprocessing(PREPROCESSING.value)
    augmentation = images.Augmentation(AUGMENTATION.value, num_layers=LAYERS.value)
    batch_size = COLUMNS.value if PREVIEW.value else BATCH_SIZE.value
    stages = _stages(batch_size)
    source = (
        get_source(DATASET.value, DATA_DIR.value)
        if DATASET.value
        else photographs(*_numbers("jpeg_size", JPEG_SIZE.value, int, count=2))
    )

    def batches(stage: Stage, augmentation: images.Augmentation) -> Iterator[pipeline.Batch]:
        return pipeline.train_batches(
            source,
            SPLIT.value,
            stage,
            first_example=0,
            num_batches=NUM_BATCHES.value,
            seed=SEED.value,
            preprocessing=family,
            augmentation=augmentation,
            share=pipeline.Share(threads=THREADS.value),
        )

    if PREVIEW.value:
        names = [f"{s.image_size} px\nmagnitude {s.randaugment_magnitude:.3g}" for s in stages]
        pictures = [next(batches(stage, augmentation))["image"] for stage in stages]
        rows = list(zip(names, pictures, strict=True))
        _write_preview(pathlib.Path(PREVIEW.value), f"{source.name}, {augmentation.name}", rows)
        print(f"preview: {PREVIEW.value}")
        return
    threads = THREADS.value or os.cpu_count()
    print(
        f"{source.name}, {family.name}, TensorFlow {metadata.version('tensorflow-cpu')}, "
        f"{threads} threads; medians of {REPEATS.value} and their range, µs of one core an image\n"
    )
    head = ["px", "magnitude", f"{augmentation.name}, images/s", "without", *STEPS, "together"]
    widths = [max(12, len(title)) for title in head]
    print(f"{row(head, widths)}\n{rule(widths)}", flush=True)
    plain = images.Augmentation("none")
    for stage in stages:
        pipelines = [functools.partial(batches, stage, a) for a in (augmentation, plain)]
        speeds = _interleaved(
            [functools.partial(_speed, pipeline) for pipeline in pipelines],
            f"{stage.image_size} px, images/s",
        )
        timers = _step_timers(source.split(SPLIT.value), stage, family, augmentation)
        costs = np.median(_interleaved(timers, f"{stage.image_size} px, steps"), axis=1)
        parts = np.diff(costs, prepend=0)
        cells = [
            *(str(stage.image_size), f"{stage.randaugment_magnitude:.3g}"),
            *(f"{np.median(some):.0f} ({min(some):.0f}–{max(some):.0f})" for some in speeds),
            *(f"{part:.0f} ({part / costs[-1]:.0%})" for part in parts),
            f"{costs[-1]:.0f}",
        ]
        print(row(cells, widths), flush=True)


def _stages(batch_size: int) -> list[Stage]:
    sizes = _numbers("sizes", SIZES.value, int)
    first, last = _numbers("magnitudes", MAGNITUDES.value, float, count=2)
    magnitudes = np.linspace(first, last, len(sizes))
    return [
        Stage(
            index=index,
            first_step=0,
            end_step=NUM_BATCHES.value,
            image_size=size,
            randaugment_magnitude=float(magnitude),
            mixup_alpha=0.0,
            cutmix_alpha=0.0,
            dropout_rate=0.0,
            batch_size=batch_size,
        )
        for index, (size, magnitude) in enumerate(zip(sizes, magnitudes, strict=True))
    ]


def _numbers(flag: str, values: list[str], kind: type, count: int | None = None) -> list:
    try:
        numbers = [kind(value) for value in values]
    except ValueError:
        numbers = []
    least = 1 if kind is int else 0
    if not numbers or min(numbers) < least or count not in (None, len(numbers)):
        raise UsageError(
            f"--{flag} must be {count or 'some'} numbers from {least} on, with commas between "
            f"them, got {','.join(values)!r}"
        )
    return numbers


def _speed(make_batches: Callable[[], Iterator[pipeline.Batch]]) -> float:
    """Returns the images/s after the first batch, for which the stage's graph is built."""
    batches = make_batches()
    next(batches)
    started = time.perf_counter()
    count = sum(len(batch["image"]) for batch in batches)
    return count / (time.perf_counter() - started)


def _step_timers(
    split: Split, stage: Stage, family: Preprocessing, augmentation: images.Augmentation
) -> list[Callable[[], float]]:
    """Makes a timer of each of ``STEPS`` and those before it: µs of one core per image."""
    order = Order(split, SEED.value)

    def read(example: Example) -> tf.Tensor:
        image = example["image"]
        if image.dtype == tf.string:
            image = tf.io.decode_raw(tf.strings.substr(image, 0, 1), tf.uint8)
        return tf.reshape(image, [1, -1, 1])

    def last_pixel(example: Example) -> tf.Tensor:
        # In the crop's last row: a decoder has to read all of the file before it.
        def choose_box(shape: tf.Tensor) -> decoding.Box:
            box = images.crop_box(shape, example["seed"], family, augmentation)
            return tf.stack([box[0] + box[2] - 1, box[1], 1, 1])

        return decoding.decode_box(example["image"], choose_box)

    def crop(example: Example) -> tf.Tensor:
        return images.random_crop(example["image"], example["seed"], stage, family, augmentation)

    def resized(example: Example) -> tf.Tensor:
        return decoding.resize(crop(example), stage.image_size, family.interpolation)

    def augmented(example: Example) -> tf.Tensor:
        return images.flip_and_augment(resized(example), example["seed"], stage, augmentation)

    def timed(function: Callable[[Example], tf.Tensor]) -> Callable[[], float]:
        def prepare(element) -> tf.Tensor:
            return function(order.fetch(element))[0, 0, 0]

        options = tf.data.Options()
        options.threading.private_threadpool_size = 1
        options.threading.max_intra_op_parallelism = 1
        options.autotune.enabled = False
        # Nothing may be done ahead of time, while something else is measured.
        options.experimental_optimization.apply_default_optimizations = False
        dataset = (
            order.elements(0)
            .map(tf.autograph.experimental.do_not_convert(prepare))
            .batch(stage.batch_size)
            .with_options(options)
        )

        def measure() -> float:
            batches = iter(dataset.take(NUM_BATCHES.value))
            next(batches)
            started = time.process_time()
            for _ in batches:
                pass
            seconds = time.process_time() - started
            return 1e6 * seconds / (stage.batch_size * (NUM_BATCHES.value - 1))

        return measure

    return [timed(function) for function in (read, last_pixel, crop, resized, augmented)]


def _interleaved(measurements: list[Callable[[], float]], text: str) -> np.ndarray:
    """Alternates between measurements; returns float [measurements, repeats]."""
    rounds = track(range(REPEATS.value), text, REPEATS.value)
    return np.array([[measure() for measure in measurements] for _ in rounds]).T


def _write_preview(path: pathlib.Path, title: str, rows: list[tuple[str, np.ndarray]]) -> None:
    """Draws rows of a name and its images, uint8 [columns, side, side, 3], all of one size."""
    from matplotlib.figure import Figure

    columns = max(len(pictures) for _, pictures in rows)
    size = (1.2 * columns + 0.6, 1.2 * len(rows) + 0.4)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    figure.suptitle(title, weight="bold")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_of_row, (name, pictures) in zip(grid, rows, strict=True):
        axes_of_row[0].set_ylabel(name, size=9)
        for axes, picture in zip(axes_of_row, pictures, strict=False):
            axes.imshow(picture, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"preview {str(path)!r} cannot be written: {reason(error)}") from error
