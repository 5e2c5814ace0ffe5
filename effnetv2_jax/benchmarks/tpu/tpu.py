"""Estimate a training step on TPUs that are not attached: ``python -m effnetv2_jax.benchmark tpu``.

Compiles the step for ``--topology`` with the TPU's own compiler (``pip install
'effnetv2_jax[tpu]'``), and prints a row for every model at every image size with every batch, as
soon as it is there. Seconds are XLA's estimate, which hardly counts collectives, so their number
and bytes stand beside it.

Compiling takes minutes. The figures are kept in ``--records``, and later the step is only traced to
see if its programs are still the same. Without libtpu, rows come only from the records and say if
they may be older than the code.
"""

import itertools
import pathlib
from collections.abc import Callable
from typing import Any

from absl import flags

from effnetv2_jax.benchmarks.markdown import NOTHING, row, rule
from effnetv2_jax.benchmarks.timing.steps import StepSpec
from effnetv2_jax.benchmarks.tpu.compile import compile_train_step
from effnetv2_jax.benchmarks.tpu.records import CompiledStep
from effnetv2_jax.models import get_spec
from effnetv2_jax.runtime.bars import spinner
from effnetv2_jax.runtime.errors import UsageError

MODEL = flags.DEFINE_list("model", ["efficientnetv2-s"], "Models, names of list_models().")
IMAGE_SIZE = flags.DEFINE_list(
    "image_size", [], "Image sizes in px. Each model's own training size by default."
)
BATCH_PER_CORE = flags.DEFINE_list("batch_per_core", ["128"], "Images per core and step.")
TOPOLOGY = flags.DEFINE_string("topology", "v3:4x4", "Kind and arrangement of chips.")
STEP = (
    flags.DEFINE_string("optimizer", "rmsprop", "Optimizer, a name in OPTIMIZERS."),
    flags.DEFINE_string("dtype", "bfloat16", "Dtype of the computation: float32 or bfloat16."),
    flags.DEFINE_integer("num_classes", 1000, "Number of classes.", lower_bound=1),
    flags.DEFINE_integer(
        "bn_group_size",
        None,
        "Cores that share batch norm's statistics. Default: all.",
        lower_bound=1,
    ),
    flags.DEFINE_string(
        "remat", "none", "What the backward pass recomputes: none, blocks or stages."
    ),
    flags.DEFINE_boolean("scan_blocks", False, "Compile equal blocks as a loop."),
    flags.DEFINE_integer(
        "accumulation_steps", 1, "Parts in which a core works through its batch.", lower_bound=1
    ),
    flags.DEFINE_integer("fsdp", 1, "Cores that share one copy of the state.", lower_bound=1),
    flags.DEFINE_string("reduce_dtype", "float32", "Dtype in which gradients are summed."),
    flags.DEFINE_boolean("mixing", False, "Compile Mixup and CutMix into the step."),
)
"""The flags that are fields of ``StepSpec``."""
RECORDS = flags.DEFINE_string(
    "records", None, "File of figures that were compiled before. Default: one in the cache folder."
)


def main() -> None:
    # Every check comes before the first step, which takes minutes.
    sizes = _numbers("image_size", IMAGE_SIZE.value)
    batches = _numbers("batch_per_core", BATCH_PER_CORE.value)
    asked = [
        (name, size, batch)
        for name, spec in [(name, get_spec(name)) for name in MODEL.value]
        for size, batch in itertools.product(sizes or [spec.train_size], batches)
    ]
    options: dict[str, Any] = {flag.name: flag.value for flag in STEP}
    for number, (name, size, batch) in enumerate(asked):
        step = StepSpec(name, size, **options)
        with spinner(f"{name}, {size} px, {batch} a core:") as show:
            compiled = compile_train_step(
                step,
                topology=TOPOLOGY.value,
                batch_per_core=batch,
                records_file=pathlib.Path(RECORDS.value) if RECORDS.value else None,
                on_phase=show,
            )
        if number == 0:
            print(_heading(compiled))
        cells = [text(compiled) for _, _, text in COLUMNS]
        print(row(cells, WIDTHS), flush=True)


def _numbers(flag: str, values: list[str]) -> list[int]:
    if not all(value.strip().isdecimal() and int(value) > 0 for value in values):
        raise UsageError(
            f"--{flag} must be whole numbers from 1 on, with commas between them, "
            f"got {','.join(values)!r}"
        )
    return [int(value) for value in values]


def _heading(c: CompiledStep) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in c.versions.items())
    return (
        f"{c.topology}, {c.cores} × {c.device_kind}, {_gib(c.memory_limit)} GiB a core; "
        f"{versions}\n"
        "per core and step; ms and images/s are XLA's estimate, which hardly counts collectives\n\n"
        f"{row([title for title, _, _ in COLUMNS], WIDTHS)}\n{rule(WIDTHS)}"
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def _or_dash(value: float | None, unit: float = 1.0) -> str:
    if value is None:
        return NOTHING
    value /= unit
    return f"{value:.4g}" if value < 1e4 else f"{value:.0f}"


def _collectives(c: CompiledStep) -> str:
    kinds = (c.collectives or {}).items()
    return ", ".join(f"{n.count} {kind} {n.bytes / 1e6:.1f}" for kind, n in kinds) or NOTHING


def _images_per_second(c: CompiledStep) -> str:
    return _or_dash(c.batch_per_core / c.seconds if c.fits and c.seconds else None)


def _compile_seconds(c: CompiledStep) -> str:
    return f"{c.gradients.compile_seconds + c.update.compile_seconds:.0f}"


# Title, width and text of each column.
COLUMNS: tuple[tuple[str, int, Callable[[CompiledStep], str]], ...] = (
    ("model", 19, lambda c: c.step.model),
    ("px", 4, lambda c: str(c.step.image_size)),
    ("images", 6, lambda c: str(c.batch_per_core)),
    ("fits, GiB", 11, lambda c: "yes" if c.fits else f"no, by {_gib(-c.hbm_margin)}"),
    ("HBM GiB", 7, lambda c: _gib(c.hbm_used)),
    ("GFLOP", 6, lambda c: _or_dash(c.flops, 1e9)),
    ("GB moved", 8, lambda c: _or_dash(c.bytes_accessed, 1e9)),
    ("ms", 6, lambda c: _or_dash(c.seconds, 1e-3)),
    ("images/s", 8, _images_per_second),
    ("collectives, MB", 20, _collectives),
    ("compiled in s", 13, _compile_seconds),
    ("remark", 6, lambda c: c.remark),
)
WIDTHS = tuple(width for _, width, _ in COLUMNS)
