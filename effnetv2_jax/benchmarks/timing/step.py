"""Times a training step: ``python -m effnetv2_jax.benchmark step --model=NAME --image_size=PX``.

Seconds to trace and compile its two programs, then the median of some steps on noise, with the
share of the device's peak and the bytes an image moves. Needs neither TensorFlow nor clu nor TFDS.
To compare two settings, alternate the commands: on a shared machine only ratios of neighbouring
runs count.
"""

import jax
from absl import flags

from effnetv2_jax.benchmarks.timing.measure import (
    environment,
    measured_peak_flops,
    peak_flops,
)
from effnetv2_jax.benchmarks.timing.model_step import ModelStep, make_model_step
from effnetv2_jax.benchmarks.timing.timed_model import measure, prepare_train_step
from effnetv2_jax.training.mesh import check_batch_size

MODEL = flags.DEFINE_string("model", "efficientnetv2-b0", "A name of list_models().")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 128, "Side in px.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images a step, all devices.", lower_bound=1)
NUM_CLASSES = flags.DEFINE_integer("num_classes", 10, "Of the classifier.", lower_bound=1)
OPTIMIZER = flags.DEFINE_string("optimizer", "adamw", "A name of optimizers.OPTIMIZERS.")
DTYPE = flags.DEFINE_string("dtype", "float32", "Of the computation: float32 or bfloat16.")
REPEATS = flags.DEFINE_integer("repeats", 30, "Steps that are timed.", lower_bound=5)


def model_step() -> tuple[ModelStep, int]:
    """The step that the flags name, and its batch size; says what that is."""
    step = make_model_step(
        jax.devices(),
        model=MODEL.value,
        image_size=IMAGE_SIZE.value,
        optimizer=OPTIMIZER.value,
        dtype=DTYPE.value,
        num_classes=NUM_CLASSES.value,
    )
    check_batch_size("batch_size", BATCH_SIZE.value, step.mesh)
    say_what()
    return step, BATCH_SIZE.value


def say_what() -> None:
    """Prints what is timed, and on what."""
    print(f"{MODEL.value}, {IMAGE_SIZE.value} px, batch {BATCH_SIZE.value}, {DTYPE.value}")
    print(", ".join(f"{name} {value}" for name, value in environment().items()))


def main() -> None:
    prepared = prepare_train_step(
        MODEL.value,
        image_size=IMAGE_SIZE.value,
        batch_size=BATCH_SIZE.value,
        dtype=DTYPE.value,
        optimizer=OPTIMIZER.value,
        num_classes=NUM_CLASSES.value,
    )
    say_what()
    print(f"compiled in {prepared.compile_seconds:.1f} s")
    found = measure(prepared, repeats=REPEATS.value)
    if found.mfu is None:
        print(f"does not fit: it takes {found.memory / 2**30:.1f} GiB a device")
        return
    print(f"step {found.timing}, {found.images_per_second:.4g} images/s")
    of = "its peak"
    if peak_flops(jax.devices()[0].device_kind) is None:
        of = f"the {measured_peak_flops() / 1e9:.0f} GFLOP/s of a float32 matrix product"
    print(
        f"MFU {100 * found.mfu:.1f} % of {of}; {found.memory / 2**30:.2f} GiB a device, "
        f"{found.bytes_per_image / 1e6:.1f} MB moved an image"
    )
