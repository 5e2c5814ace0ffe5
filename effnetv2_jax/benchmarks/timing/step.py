"""Time a training step: ``python -m effnetv2_jax.benchmark step --model=NAME --image_size=PX``.

Prints the seconds to trace and compile its two programs, then the median of some steps on noise,
with the share of the device's peak and the bytes that an image moves. Needs neither TensorFlow nor
clu nor TFDS. To compare two settings, alternate the commands: on a shared machine only ratios of
neighbouring runs count.
"""

import jax
from absl import flags

from effnetv2_jax.benchmarks.timing.measure import (
    environment_text,
    measured_peak_flops,
    peak_flops,
    time_runs,
)
from effnetv2_jax.benchmarks.timing.steps import StepSpec
from effnetv2_jax.benchmarks.timing.timed_model import compile_train_step

MODEL = flags.DEFINE_string("model", "efficientnetv2-b0", "Model, a name of list_models().")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 128, "Image size in px.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 32, "Number of images per step, over all devices.", lower_bound=1
)
NUM_CLASSES = flags.DEFINE_integer("num_classes", 10, "Number of classes.", lower_bound=1)
OPTIMIZER = flags.DEFINE_string("optimizer", "adamw", "Optimizer, a name in OPTIMIZERS.")
DTYPE = flags.DEFINE_string("dtype", "float32", "Dtype of the computation: float32 or bfloat16.")
REPEATS = flags.DEFINE_integer("repeats", 30, "Number of steps that are timed.", lower_bound=5)


def step_of_the_flags() -> StepSpec:
    """Returns the step that the flags describe."""
    return StepSpec(
        MODEL.value,
        IMAGE_SIZE.value,
        optimizer=OPTIMIZER.value,
        dtype=DTYPE.value,
        num_classes=NUM_CLASSES.value,
    )


def say_what() -> None:
    """Prints what is timed, and on what."""
    print(f"{MODEL.value}, {IMAGE_SIZE.value} px, batch {BATCH_SIZE.value}, {DTYPE.value}")
    print(environment_text())


def main() -> None:
    compiled = compile_train_step(step_of_the_flags(), batch_size=BATCH_SIZE.value)
    say_what()
    print(f"compiled in {compiled.compile_seconds:.1f} s")
    if compiled.run is None:
        print(f"does not fit: it takes {compiled.memory / 2**30:.1f} GiB a device")
        return
    timing = time_runs(compiled.run, repeats=REPEATS.value)
    print(f"step {timing}, {BATCH_SIZE.value / timing.median:.4g} images/s")
    of = "its peak"
    if peak_flops(jax.devices()[0].device_kind) is None:
        of = f"the {measured_peak_flops() / 1e9:.0f} GFLOP/s of a float32 matrix product"
    print(
        f"MFU {100 * compiled.mfu(timing):.1f} % of {of}; {compiled.memory / 2**30:.2f} GiB a "
        f"device, {compiled.bytes_per_image / 1e6:.1f} MB moved an image"
    )
