"""What a training step costs on TPUs that are not there: ``python -m effnetv2_jax.benchmark tpu``.

Compiles the step for ``--topology`` with the TPU's own compiler (``pip install
'effnetv2_jax[tpu]'``), and prints a row for every model at every image size with every batch, as
soon as it is there. Seconds are XLA's estimate, which hardly counts collectives, so that their
number and bytes stand beside it. A step takes minutes to compile; the next time it is only traced,
since figures are kept under ``~/.cache/effnetv2_jax/tpu_compile`` by what was compiled.
"""

import itertools
from collections.abc import Callable

from absl import flags

from effnetv2_jax.benchmarks.tpu.compile import TpuCompilation, compile_train_step
from effnetv2_jax.models import get_spec
from effnetv2_jax.runtime.bars import spinner
from effnetv2_jax.runtime.errors import UsageError

MODEL = flags.DEFINE_list("model", ["efficientnetv2-s"], "Names of list_models().")
IMAGE_SIZE = flags.DEFINE_list(
    "image_size", [], "Sides in px; each model's own training size by default."
)
BATCH_PER_CORE = flags.DEFINE_list("batch_per_core", ["128"], "Images a core and step.")
TOPOLOGY = flags.DEFINE_string("topology", "v3:4x4", "Kind and arrangement of chips.")
OPTIMIZER = flags.DEFINE_string("optimizer", "rmsprop", "A name of optimizers.OPTIMIZERS.")
DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Of the computation.")
NUM_CLASSES = flags.DEFINE_integer("num_classes", 1000, "Of the classifier.", lower_bound=1)
BN_GROUP_SIZE = flags.DEFINE_integer(
    "bn_group_size", None, "Cores that share batch-norm statistics; all by default.", lower_bound=1
)
REMAT = flags.DEFINE_string("remat", "none", "What is computed anew: none, blocks or stages.")
SCAN_BLOCKS = flags.DEFINE_boolean("scan_blocks", False, "Equal blocks as a loop.")
ACCUMULATION_STEPS = flags.DEFINE_integer(
    "accumulation_steps", 1, "Parts of a core's batch, one after the other.", lower_bound=1
)
FSDP = flags.DEFINE_integer("fsdp", 1, "Cores that share one copy of the state.", lower_bound=1)
REDUCE_DTYPE = flags.DEFINE_string("reduce_dtype", "float32", "In which gradients are summed.")
MIXING = flags.DEFINE_boolean("mixing", False, "With Mixup and CutMix.")
CACHE = flags.DEFINE_boolean("cache", True, "Read and keep figures of what was compiled before.")


def main() -> None:
    # All that can be checked at once is, before the first of them takes minutes.
    sizes = _numbers("image_size", IMAGE_SIZE.value)
    batches = _numbers("batch_per_core", BATCH_PER_CORE.value)
    steps = [
        (name, size, batch)
        for name, spec in [(name, get_spec(name)) for name in MODEL.value]
        for size, batch in itertools.product(sizes or [spec.train_size], batches)
    ]
    for number, (name, size, batch) in enumerate(steps):
        with spinner(f"{name}, {size} px, {batch} a core:") as show:
            compilation = compile_train_step(
                name,
                image_size=size,
                topology=TOPOLOGY.value,
                batch_per_core=batch,
                optimizer=OPTIMIZER.value,
                dtype=DTYPE.value,
                num_classes=NUM_CLASSES.value,
                bn_group_size=BN_GROUP_SIZE.value,
                remat=REMAT.value,
                scan_blocks=SCAN_BLOCKS.value,
                accumulation_steps=ACCUMULATION_STEPS.value,
                fsdp=FSDP.value,
                reduce_dtype=REDUCE_DTYPE.value,
                mixing=MIXING.value,
                use_cache=CACHE.value,
                on_phase=show,
            )
        if number == 0:
            print(heading(compilation))
        print(row(compilation), flush=True)


def _numbers(flag: str, values: list[str]) -> list[int]:
    if not all(value.strip().isdecimal() and int(value) > 0 for value in values):
        raise UsageError(
            f"--{flag} must be whole numbers from 1 on, with commas between them, "
            f"got {','.join(values)!r}"
        )
    return [int(value) for value in values]


def _fits(c: TpuCompilation) -> str:
    return "yes" if c.fits else f"no, by {_gib(-c.hbm_margin)}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def _or_dash(value: float | None, unit: float = 1.0) -> str:
    if value is None:
        return "–"
    value /= unit
    return f"{value:.4g}" if value < 1e4 else f"{value:.0f}"


def _collectives(c: TpuCompilation) -> str:
    kinds = (c.collectives or {}).items()
    return ", ".join(f"{n.count} {kind} {n.bytes / 1e6:.1f}" for kind, n in kinds) or "–"


# Title, width and text of each column.
COLUMNS: tuple[tuple[str, int, Callable[[TpuCompilation], str]], ...] = (
    ("model", 19, lambda c: c.model),
    ("px", 4, lambda c: str(c.image_size)),
    ("images", 6, lambda c: str(c.batch_per_core)),
    ("fits, GiB", 11, _fits),
    ("HBM GiB", 7, lambda c: _gib(c.hbm_used)),
    ("GFLOP", 6, lambda c: _or_dash(c.flops, 1e9)),
    ("GB moved", 8, lambda c: _or_dash(c.bytes_accessed, 1e9)),
    ("ms", 6, lambda c: _or_dash(c.seconds, 1e-3)),
    ("images/s", 8, lambda c: _or_dash(c.images_per_second_per_core)),
    ("collectives, MB", 20, _collectives),
    ("compiled in s", 13, lambda c: f"{c.compile_seconds:.0f}"),
)


def heading(c: TpuCompilation) -> str:
    """What goes for all rows, and the table's head."""
    versions = ", ".join(f"{name} {version}" for name, version in c.versions.items())
    titles = " | ".join(f"{title:<{width}}" for title, width, _ in COLUMNS)
    return (
        f"{c.topology}, {c.cores} × {c.device_kind}, {_gib(c.hbm_limit)} GiB a core; {versions}\n"
        "a core and step; ms and images/s are XLA's estimate, which hardly counts collectives\n\n"
        f"| {titles} |\n|{'|'.join('-' * (width + 2) for _, width, _ in COLUMNS)}|"
    )


def row(c: TpuCompilation) -> str:
    """A row of the table: Markdown, in columns of equal width."""
    return f"| {' | '.join(f'{text(c):<{width}}' for _, width, text in COLUMNS)} |"
