"""Compiling for TPUs: what surrounds the compiler without it; and with it, where it is there."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from absl.testing import flagsaver

from effnetv2_jax.benchmarks.tpu import (
    command as tpu_table,
)
from effnetv2_jax.benchmarks.tpu import (
    compile as tpu_compile,
)
from effnetv2_jax.benchmarks.tpu import (
    figures_cache,
)
from effnetv2_jax.benchmarks.tpu import (
    worker as tpu_worker,
)
from effnetv2_jax.benchmarks.tpu.collectives import Collectives
from effnetv2_jax.benchmarks.tpu.figures import (
    ProgramFigures,
    compile_and_measure,
    refused_sizes,
)
from effnetv2_jax.benchmarks.tpu.programs import StepProgram, lower_train_step
from effnetv2_jax.models import model_info
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.files import cache_folder

GIB = 2**30
TINY = {
    "model": "efficientnetv2-tiny",
    "image_size": 16,
    "batch_per_core": 2,
    "optimizer": "rmsprop",
    "dtype": "float32",
    "num_classes": 10,
    "bn_group_size": None,
    "remat": "none",
    "accumulation_steps": 1,
    "fsdp": 1,
    "reduce_dtype": "float32",
    "mixing": False,
}
FIGURES = ProgramFigures(
    refused=False,
    arguments=GIB,
    memory=10 * GIB,
    memory_limit=None,
    flops=4e9,
    bytes_accessed=2e9,
    seconds=0.25,
    collectives={"all-reduce": Collectives(3, 100)},
    compile_seconds=60.0,
)
UPDATE = dataclasses.replace(
    FIGURES, memory=2 * GIB, seconds=0.01, collectives={"all-reduce": Collectives(1, 4)}
)
REFUSED = dataclasses.replace(
    FIGURES, refused=True, memory=20 * GIB, memory_limit=16 * GIB, seconds=None, collectives={}
)


def report(gradients=FIGURES, *, beside=GIB, accumulation_steps=1):
    return {
        "device_kind": "TPU v3",
        "cores": 32,
        "versions": {"jax": "0.10.2", "jaxlib": "0.10.2", "libtpu": "0.0.42"},
        "memory_limit": 16 * GIB,
        "figures": {"gradients": gradients.as_json(), "update": UPDATE.as_json()},
        "beside": {"gradients": beside, "update": 0},
        "loop_runs": {"gradients": accumulation_steps, "update": 1},
    }


def combined(*args, options=None, **kwargs):
    return tpu_compile.combine(
        report(*args, **kwargs),
        model="efficientnetv2-s",
        image_size=128,
        topology="v3:4x4",
        batch_per_core=128,
        options=options or {},
    )


def test_a_step_is_both_programs_and_what_lies_beside_them():
    step = combined()
    assert step.fits and step.hbm_used == 11 * GIB and step.hbm_margin == 5 * GIB
    assert step.seconds == 0.26 and step.flops == 8e9 and step.compile_seconds == 120
    assert step.images_per_second_per_core == pytest.approx(128 / 0.26)
    assert step.collectives == {"all-reduce": Collectives(4, 104)}
    json.dumps(dataclasses.asdict(step))


def test_the_state_that_is_no_argument_counts():
    step = combined(beside=7 * GIB)
    assert not step.fits and step.hbm_margin == -GIB
    assert step.images_per_second_per_core is None


def test_a_refused_program_does_not_fit():
    step = combined(REFUSED)
    assert not step.fits and step.hbm_used == 21 * GIB
    assert step.flops is step.seconds is step.collectives is None


def test_accumulation_multiplies_what_is_counted_once():
    step = combined(accumulation_steps=4)
    assert step.flops == 5 * 4e9 and step.seconds == 4 * 0.25 + 0.01
    assert step.collectives == {"all-reduce": Collectives(4, 104)}  # counted in the loop already


def test_of_loops_over_blocks_nothing_is_said_that_xla_counts_once():
    step = combined(options={"scan_blocks": True})
    assert step.flops is step.bytes_accessed is step.seconds is None
    assert step.fits and step.images_per_second_per_core is None
    assert step.collectives == combined().collectives


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 19.89G of 15.48G hbm. Exceeded hbm capacity by 4.41G.",
            (19.89, 15.48),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (2.00T) exceeds available HBM (15.48G).",
            (2048, 15.48),
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem.", None),
        ("INTERNAL: Used 19.89G of 15.48G hbm.", None),
    ],
)
def test_sizes_are_read_from_a_refusal(message, sizes):
    assert refused_sizes(message) == (sizes and tuple(int(size * GIB) for size in sizes))


def test_a_refusal_is_a_result_and_another_failure_is_not():
    class Refusing:
        def __init__(self, message):
            self.message = message

        def compile(self):
            raise jax.errors.JaxRuntimeError(self.message)

    figures = compile_and_measure(Refusing("RESOURCE_EXHAUSTED: Used 3.00G of 2.00G hbm."))
    assert (figures.refused, figures.memory, figures.memory_limit) == (True, 3 * GIB, 2 * GIB)
    with pytest.raises(jax.errors.JaxRuntimeError):
        compile_and_measure(Refusing("INTERNAL: a bug"))


@pytest.mark.parametrize("figures", [FIGURES, REFUSED], ids=["fits", "refused"])
def test_figures_are_kept_by_content(tmp_path, figures):
    key = figures_cache.key_of("module", "v3:4x4")
    assert key not in (figures_cache.key_of("module", "v3:2x2"), figures_cache.key_of("", "v3:4x4"))
    assert figures_cache.read(tmp_path / "new", key) is None
    figures_cache.write(tmp_path / "new", key, figures)
    assert figures_cache.read(tmp_path / "new", key) == figures
    assert [file.name for file in (tmp_path / "new").iterdir()] == [f"{key}.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"collectives": 1}', '{"refused": true'])
def test_a_broken_file_of_figures_is_none(tmp_path, content):
    (tmp_path / "key.json").write_text(content)
    assert figures_cache.read(tmp_path, "key") is None


def test_figures_that_come_with_the_package_are_found_and_whole(tmp_path):
    shipped = list(figures_cache.SHIPPED.glob("*.json"))
    assert len(shipped) > 40
    for path in shipped:
        assert figures_cache.read(tmp_path, path.stem).compile_seconds > 0


def test_a_folder_that_cannot_be_written_does_not_matter():
    figures_cache.write(figures_cache.pathlib.Path("/proc/nowhere"), "key", FIGURES)


def test_figures_are_kept_in_the_cache_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    assert str(cache_folder()) == "/there/effnetv2_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder().is_absolute()


def lower_something(devices, *, model, image_size, batch_per_core):
    """Programs in place of the step's, of which the update does not see a batch either."""

    def lowered(*shape):
        return jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct(shape, jnp.float32))

    return {
        "gradients": StepProgram(lowered(batch_per_core, image_size), lowered(3)),
        "update": StepProgram(lowered(4), lowered(batch_per_core)),
    }


def test_the_worker_compiles_each_program_once(tmp_path, monkeypatch):
    compiled = []

    def compile_and_measure(lowered):
        compiled.append(lowered)
        return dataclasses.replace(FIGURES, memory_limit=16 * GIB)

    monkeypatch.setattr(tpu_worker, "_devices", lambda topology: jax.devices())
    monkeypatch.setattr(tpu_worker, "lower_train_step", lower_something)
    monkeypatch.setattr(tpu_worker, "compile_and_measure", compile_and_measure)
    monkeypatch.setattr(tpu_worker.metadata, "version", lambda name: "1")
    asked = {"model": "efficientnetv2-s", "image_size": 16, "batch_per_core": 2}
    said = []

    def run(**changes):
        compiled.clear()
        request = {"topology": "v3:2x2", "cache": str(tmp_path), "arguments": asked, **changes}
        return tpu_worker.compile_for_tpu(say=lambda *what: said.append(what), **request)

    first = run()
    # Two programs, what lies beside each, and one that tells the limit.
    assert len(compiled) == 5
    assert ("phase", "compiling the gradients") in said
    assert run() == first and not compiled
    run(arguments=asked | {"batch_per_core": 5})
    assert len(compiled) == 2
    run(topology="v5e:2x4")
    assert len(compiled) == 5
    run(cache=None)
    assert len(compiled) == 5
    step = tpu_compile.combine(first, topology="v3:2x2", options={}, **asked)
    assert step.cores == 8 and step.hbm_used == 11 * GIB


def test_the_update_is_lowered_with_its_whole_state():
    programs = lower_train_step(jax.devices(), **TINY)
    figures = compile_and_measure(programs["update"].lowered)
    beside = compile_and_measure(programs["gradients"].beside)
    parameters = 4 * model_info(TINY["model"], num_classes=10).parameters
    # Parameters, gradients, average and the two slots of RMSProp; two of batch norm's statistics
    # and its gradients are added.
    assert 5 * parameters < figures.arguments < 5.2 * parameters
    assert 3 * parameters < beside.arguments < 3.1 * parameters
    assert not figures.collectives and not figures.refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"reduce_dtype": "int8"}, "unknown reduce_dtype 'int8'"),
        ({"fsdp": 3}, "fsdp must divide the number of devices (8), got 3"),
        ({"accumulation_steps": 4}, "must be a multiple of the number of devices (8 × 4"),
        ({"model": "efficientnetv2-z"}, "unknown model 'efficientnetv2-z'"),
    ],
)
def test_what_cannot_be_lowered_is_named(change, message):
    with pytest.raises(UsageError) as error:
        lower_train_step(jax.devices(), **TINY | change)
    assert message in str(error.value)


def refuse(message):
    def get_topology_desc(**kwargs):
        raise jax.errors.JaxRuntimeError(message)

    return get_topology_desc


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (
            "INVALID_ARGUMENT: Invalid TPU external name: TPU v9",
            "unknown topology 'v9:2x2' (libtpu: Invalid TPU external name: TPU v9): there are "
            "v2:2x2, v3:2x2, v3:4x4, v4:2x2x1,",
        ),
        ("ABORTED: Internal error when accessing libtpu's lock", "libtpu does not start: Internal"),
    ],
)
def test_an_unknown_topology_lists_those_there_are(monkeypatch, reason, message):
    monkeypatch.setattr(tpu_worker.topologies, "get_topology_desc", refuse(reason))
    with pytest.raises(UsageError) as error:
        tpu_worker._devices("v9:2x2")
    assert message in str(error.value)


def test_no_topology_is_not_libtpus_own_choice():
    with pytest.raises(UsageError, match="unknown topology ''"):
        tpu_worker._devices("")


def compile_something(**changes):
    arguments = {"image_size": 16, "batch_per_core": 2} | changes
    return tpu_compile.compile_train_step("efficientnetv2-tiny", **arguments)


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(tpu_compile.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"libtpu.* is missing: pip install 'effnetv2_jax\[tpu\]'"):
        compile_something()


@pytest.mark.parametrize("name", ["image_size", "batch_per_core"])
def test_nothing_is_compiled_for_no_pixels_or_images(name):
    with pytest.raises(UsageError, match=f"{name} must be at least 1, got 0"):
        compile_something(**{name: 0})


@pytest.fixture
def lock_file(tmp_path, monkeypatch):
    path = tmp_path / "libtpu_lockfile"
    monkeypatch.setattr(tpu_compile, "LOCK_FILE", path)
    monkeypatch.delenv("ALLOW_MULTIPLE_LIBTPU_LOAD", raising=False)
    return path


def test_a_held_lock_is_named_with_its_process(lock_file, monkeypatch):
    tpu_compile.check_lock()
    lock_file.touch()
    # What a killed process leaves behind.
    tpu_compile.check_lock()
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, lock_file], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        with pytest.raises(UsageError) as error:
            tpu_compile.check_lock()
        assert f"process {holder.pid} holds libtpu's lock '{lock_file}'" in str(error.value)
        monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        tpu_compile.check_lock()
        holder.communicate(b"\n")


def test_another_users_lock_is_named(lock_file, monkeypatch):
    class Denied(type(lock_file)):
        def __fspath__(self):
            raise PermissionError

    monkeypatch.setattr(tpu_compile, "LOCK_FILE", Denied(lock_file))
    with pytest.raises(UsageError, match="is another user's: wait until their process ends"):
        tpu_compile.check_lock()


def run_fake_worker(monkeypatch, code):
    monkeypatch.setattr(tpu_compile, "WORKER", (sys.executable, "-c", code))
    phases = []
    return tpu_compile.run_worker({"topology": "v3:2x2"}, phases.append), phases


def test_the_worker_tells_its_phases_and_its_result(monkeypatch):
    code = (
        "import json, os, sys; print(json.dumps({'phase': 'tracing'})); "
        "print(json.dumps({'result': [json.loads(sys.argv[1]), os.environ['JAX_PLATFORMS'], "
        "os.environ.get('TPU_NAME')]}))"
    )
    monkeypatch.setenv("TPU_NAME", "this machine's")
    result, phases = run_fake_worker(monkeypatch, code)
    assert result == [{"topology": "v3:2x2"}, "cpu", None]
    assert phases == ["tracing"]


def test_what_the_worker_cannot_use_is_an_error_here(monkeypatch):
    with pytest.raises(UsageError, match="unknown topology"):
        run_fake_worker(monkeypatch, """print('{"error": "unknown topology"}')""")


def test_a_worker_that_dies_leaves_its_last_words(monkeypatch):
    with pytest.raises(RuntimeError, match=r"exit code 3\): out of luck"):
        run_fake_worker(monkeypatch, "import sys; print('out of luck', file=sys.stderr); exit(3)")


def test_a_row_for_every_model_size_and_batch(monkeypatch, capsys):
    def compile_train_step(model, *, image_size, batch_per_core, topology, on_phase, **options):
        on_phase("tracing")
        asked = {"model": model, "image_size": image_size, "batch_per_core": batch_per_core}
        gradients = REFUSED if batch_per_core == 128 else FIGURES
        return tpu_compile.combine(report(gradients), topology=topology, options=options, **asked)

    monkeypatch.setattr(tpu_table, "compile_train_step", compile_train_step)
    flags.FLAGS.mark_as_parsed()
    with flagsaver.as_parsed(
        model="efficientnetv2-s,efficientnetv2-m", image_size="128, 300", batch_per_core="32,128"
    ):
        tpu_table.main()
    first, second, _, head, line, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("v3:4x4, 32 × TPU v3, 16.00 GiB a core; jax 0.10.2")
    assert "XLA's estimate, which hardly counts collectives" in second
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in [head, *rows]]
    assert {len(row) for row in cells} == {line.count("|") - 1} and len(rows) == 8
    assert cells[1] == [
        "efficientnetv2-s", "128", "32", "yes", "11.00", "8", "4", "260", "123.1",
        "4 all-reduce 0.0", "120",
    ]  # fmt: skip
    assert cells[2][3:10] == ["no, by 5.00", "21.00", "–", "–", "–", "–", "–"]
    assert [row[:3] for row in cells[-2:]] == [
        ["efficientnetv2-m", "300", "32"],
        ["efficientnetv2-m", "300", "128"],
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "efficientnetv2-s,efficientnetv2-x"}, "unknown model 'efficientnetv2-x'"),
        ({"batch_per_core": "32,0"}, "--batch_per_core must be whole numbers from 1 on"),
        ({"image_size": "big"}, "--image_size must be whole numbers from 1 on"),
    ],
)
def test_flags_are_checked_before_anything_is_compiled(values, message, monkeypatch):
    monkeypatch.setattr(tpu_table, "compile_train_step", None)
    flags.FLAGS.mark_as_parsed()
    with flagsaver.as_parsed(**values), pytest.raises(UsageError) as error:
        tpu_table.main()
    assert message in str(error.value)


@pytest.mark.slow
def test_a_step_compiled_for_a_tpu(tmp_path):
    pytest.importorskip("libtpu")

    def compile_tiny(**changes):
        arguments = {"image_size": 32, "batch_per_core": 8, "topology": "v3:2x2"}
        return compile_something(cache=tmp_path, **arguments | changes)

    step = compile_tiny()
    assert step.fits and (step.cores, step.device_kind) == (8, "TPU v3")
    assert 15 * GIB < step.hbm_limit < 16 * GIB and 0 < step.hbm_used < GIB
    assert step.flops > 1e6 and step.bytes_accessed > 1e6 and 0 < step.seconds < 1e-2
    info = model_info("efficientnetv2-tiny")
    # Gradients, batch norm's statistics, and a few sums.
    assert 1 <= step.collectives["all-reduce"].bytes / (4 * info.parameters) < 1.05
    assert compile_tiny() == step
    accumulated = compile_tiny(accumulation_steps=4)
    assert accumulated.flops == pytest.approx(step.flops, rel=0.05)
    assert accumulated.collectives["all-reduce"].count > 2 * step.collectives["all-reduce"].count
    large = compile_tiny(batch_per_core=1 << 20)
    assert not large.fits and large.hbm_margin < 0 and large.seconds is None
    for topology in ("v9:2x2", "v3:5x5", "v3", ""):
        with pytest.raises(UsageError, match="unknown topology"):
            compile_tiny(topology=topology)
