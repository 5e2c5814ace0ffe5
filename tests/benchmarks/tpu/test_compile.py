"""Compiling for TPUs: what surrounds the compiler without it; and with it, if it is installed."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from absl.testing import flagsaver

from effnetv2_jax.benchmarks.timing.steps import StepSpec
from effnetv2_jax.benchmarks.tpu import compile as tpu_compile
from effnetv2_jax.benchmarks.tpu import records, tpu
from effnetv2_jax.benchmarks.tpu import worker as tpu_worker
from effnetv2_jax.benchmarks.tpu.figures import compile_and_measure, refused_sizes
from effnetv2_jax.benchmarks.tpu.worker import LoweredProgram, TpuCompiler, lower_train_step
from effnetv2_jax.models import model_info
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.workers import WorkerError
from tests.benchmarks.tpu.made_up import FIGURES, GIB, REFUSED, UPDATE, VERSIONS, record

TINY = StepSpec("efficientnetv2-tiny", 16, dtype="float32", num_classes=10)


@pytest.fixture(autouse=True)
def no_records(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "PACKAGE_FILE", tmp_path / "package.json")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)


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


# --- the worker


def lower_something(devices, step, *, batch_per_core):
    """Programs in place of the step's. The update does not see the batch either."""

    def lowered(*shape):
        return jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct(shape, jnp.float32))

    return {
        "gradients": LoweredProgram(lowered(batch_per_core, step.image_size), lowered(3)),
        "update": LoweredProgram(lowered(4), lowered(batch_per_core)),
    }


def test_the_worker_compiles_only_what_is_not_known(monkeypatch):
    compiled, told = [], []

    def compile_and_measure(lowered):
        compiled.append(lowered)
        return dataclasses.replace(FIGURES, memory_limit=16 * GIB)

    monkeypatch.setattr(tpu_worker, "_devices", lambda topology: jax.devices())
    monkeypatch.setattr(tpu_worker, "lower_train_step", lower_something)
    monkeypatch.setattr(tpu_worker, "compile_and_measure", compile_and_measure)
    monkeypatch.setattr(tpu_worker.metadata, "version", VERSIONS.get)
    compiler = TpuCompiler("v3:2x2", told.append)
    compile_step = functools.partial(compiler.compile, dataclasses.asdict(TINY))
    found = compile_step(batch_per_core=2, known=[])
    # Two programs, what lies beside each, and one that tells the limit.
    assert len(compiled) == 5 and "compiling the gradients" in told
    assert (found["cores"], found["memory_limit"]) == (8, 16 * GIB)
    assert found["gradients"]["memory"] == 10 * GIB and found["versions"] == VERSIONS
    known = [found["program"], VERSIONS]
    compiled.clear()
    assert compile_step(batch_per_core=2, known=known) is None and not compiled
    assert compile_step(batch_per_core=3, known=known) is not None
    known = [found["program"], VERSIONS | {"libtpu": "0.0.43"}]
    assert compile_step(batch_per_core=2, known=known) is not None
    assert len(compiled) == 10


@functools.cache
def lowered_tiny(**changes):
    step = dataclasses.replace(TINY, **changes)
    return lower_train_step(jax.devices(), step, batch_per_core=2)


def test_a_digest_is_of_the_programs_not_of_where_they_stand():
    digest = tpu_worker.digest_of(lowered_tiny().values())
    # The same call in another line.
    again = lower_train_step(jax.devices(), TINY, batch_per_core=2)
    assert tpu_worker.digest_of(again.values()) == digest
    digests = {
        tpu_worker.digest_of(lower_something([], TINY, batch_per_core=size).values())
        for size in (2, 2, 3)
    }
    assert len(digests) == 2
    assert "loc(" not in lowered_tiny()["update"].program.as_text(debug_info=False)


def test_the_update_is_lowered_with_its_whole_state():
    figures = compile_and_measure(lowered_tiny()["update"].program)
    beside = compile_and_measure(lowered_tiny()["gradients"].beside)
    parameters = 4 * model_info(TINY.model, num_classes=10).parameters
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
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_lowered_is_named(change, message):
    with pytest.raises(UsageError) as error:
        lowered_tiny(**change)
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


# --- the waiting end


class FakeWorker:
    """Stands for a worker; answers with what ``answers`` has next."""

    def __init__(self):
        self.answers, self.asked = [], []

    def __call__(self, module, name, arguments, *, environment):
        self.asked.append(arguments)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def call(self, method, *, on_tell, **arguments):
        on_tell("tracing the step")
        self.asked[-1] |= arguments
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def worker(monkeypatch):
    fake = FakeWorker()
    monkeypatch.setattr(tpu_compile, "Worker", fake)
    monkeypatch.setattr(tpu_compile, "check_lock", lambda: None)
    monkeypatch.setattr(tpu_compile.importlib.util, "find_spec", lambda name: name)
    return fake


def answer(**changes):
    fields = record().as_json() | {"gradients": FIGURES.as_json(), "update": UPDATE.as_json()}
    for name in ("step", "topology", "batch_per_core", "made"):
        del fields[name]
    return json.loads(json.dumps(fields | changes))


def compile_tiny(**changes):
    return tpu_compile.compile_train_step(TINY, **{"batch_per_core": 2} | changes)


def test_a_step_is_compiled_once_and_then_compared(worker, tmp_path):
    worker.answers = [answer(), None, answer(program="changed"), None]
    phases = []
    first = compile_tiny(on_phase=phases.append)
    assert phases == ["tracing the step"] and first.checked and not first.remark
    assert first.key == (TINY, "v3:4x4", 2) and first.seconds == 0.26
    assert records.read(tpu_compile.users_file())[first.key] == dataclasses.replace(
        first, checked=False
    )
    assert compile_tiny() == first
    # The step has changed since, and is compiled again.
    assert compile_tiny().program == "changed"
    assert compile_tiny().program == "changed"
    assert [asked["known"] for asked in worker.asked] == [
        [],
        [first.program, VERSIONS],
        [first.program, VERSIONS],
        ["changed", VERSIONS],
    ]
    assert worker.asked[0]["topology"] == "v3:4x4" and worker.asked[0]["batch_per_core"] == 2
    assert (tmp_path / "effnetv2_jax" / "compiled_steps.json").exists()


def test_records_can_be_read_without_libtpu(worker, monkeypatch, tmp_path):
    mine = tmp_path / "mine.json"
    asked = {"topology": "v3:4x4", "batch_per_core": 2, "records_file": mine}
    assert tpu_compile.recorded_step(TINY, **asked) is None
    worker.answers = [answer()]
    first = compile_tiny(records_file=mine)
    assert not tpu_compile.users_file().exists()
    unchecked = dataclasses.replace(first, checked=False)
    assert tpu_compile.recorded_step(TINY, **asked) == unchecked
    monkeypatch.setattr(tpu_compile.importlib.util, "find_spec", lambda name: None)
    assert compile_tiny(records_file=mine) == unchecked and unchecked.remark
    # A larger batch is another step.
    with pytest.raises(UsageError, match=r"libtpu.* is missing: pip install 'effnetv2_jax\[tpu\]'"):
        compile_tiny(records_file=mine, batch_per_core=4)


def test_records_are_left_alone_if_the_compiler_gets_flags(worker, monkeypatch):
    worker.answers = [answer(), answer()]
    compile_tiny()
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_some_flag=true")
    text = tpu_compile.users_file().read_text()
    compile_tiny()
    assert worker.asked[-1]["known"] == [] and tpu_compile.users_file().read_text() == text
    assert tpu_compile.recorded_step(TINY, topology="v3:4x4", batch_per_core=2) is None


def test_errors_of_the_worker_are_errors_here(worker):
    worker.answers = [WorkerError("unknown topology", "UsageError"), WorkerError("it has died")]
    with pytest.raises(UsageError, match=r"^unknown topology$"):
        compile_tiny()
    with pytest.raises(RuntimeError, match="compiling for a TPU failed: it has died"):
        compile_tiny()


def test_the_worker_gets_an_environment_of_its_own(monkeypatch):
    monkeypatch.setenv("TPU_NAME", "this machine's")
    environment = tpu_compile.worker_environment()
    assert "TPU_NAME" not in environment
    assert (environment["JAX_PLATFORMS"], environment["XLA_FLAGS"]) == ("cpu", "")


@pytest.mark.parametrize("change", [{"batch_per_core": 0}, {"step": 0}])
def test_nothing_is_compiled_for_no_pixels_or_images(change):
    step = dataclasses.replace(TINY, image_size=change.get("step", 16))
    with pytest.raises(UsageError, match=r"(image_size|batch_per_core) must be at least 1, got 0"):
        tpu_compile.compile_train_step(step, batch_per_core=change.get("batch_per_core", 2))


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


# --- the command


def test_a_row_for_every_model_size_and_batch(monkeypatch, capsys):
    def compile_train_step(step, *, topology, batch_per_core, records_file, on_phase):
        on_phase("tracing")
        gradients = REFUSED if batch_per_core == 128 else FIGURES
        found = record(
            gradients, topology=topology, batch_per_core=batch_per_core, **dataclasses.asdict(step)
        )
        return dataclasses.replace(found, checked=batch_per_core == 32)

    monkeypatch.setattr(tpu, "compile_train_step", compile_train_step)
    flags.FLAGS.mark_as_parsed()
    with flagsaver.as_parsed(
        model="efficientnetv2-s,efficientnetv2-m", image_size="128, 300", batch_per_core="32,128"
    ):
        tpu.main()
    first, second, _, head, line, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("v3:4x4, 32 × TPU v3, 16.00 GiB a core; jax 0.10.2")
    assert "XLA's estimate, which hardly counts collectives" in second
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in [head, *rows]]
    assert {len(row) for row in cells} == {line.count("|") - 1} and len(rows) == 8
    assert cells[1] == [
        "efficientnetv2-s", "128", "32", "yes", "11.00", "8", "4", "260", "123.1",
        "4 all-reduce 0.0", "120", "",
    ]  # fmt: skip
    assert cells[2][3:10] == ["no, by 5.00", "21.00", "–", "–", "–", "–", "–"]
    assert cells[2][-1] == "compiled on 2026-11-25 and not compared with the step as it is now"
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
    monkeypatch.setattr(tpu, "compile_train_step", None)
    flags.FLAGS.mark_as_parsed()
    with flagsaver.as_parsed(**values), pytest.raises(UsageError) as error:
        tpu.main()
    assert message in str(error.value)


@pytest.mark.slow
def test_a_step_compiled_for_a_tpu(tmp_path):
    pytest.importorskip("libtpu")

    def compile_for(topology="v3:2x2", batch_per_core=8, **changes):
        step = StepSpec(**{"model": "efficientnetv2-tiny", "image_size": 32} | changes)
        return tpu_compile.compile_train_step(
            step,
            topology=topology,
            batch_per_core=batch_per_core,
            records_file=tmp_path / "steps.json",
        )

    step = compile_for()
    assert step.fits and (step.cores, step.device_kind) == (8, "TPU v3")
    assert 15 * GIB < step.memory_limit < 16 * GIB and 0 < step.hbm_used < GIB
    assert step.flops > 1e6 and step.bytes_accessed > 1e6 and 0 < step.seconds < 1e-2
    info = model_info("efficientnetv2-tiny")
    # Gradients, batch norm's statistics, and a few sums.
    assert 1 <= step.collectives["all-reduce"].bytes / (4 * info.parameters) < 1.05
    # Its programs are the same in another process, so it is not compiled again.
    assert compile_for() == step
    accumulated = compile_for(accumulation_steps=4)
    assert accumulated.flops == pytest.approx(step.flops, rel=0.05)
    assert accumulated.collectives["all-reduce"].count > 2 * step.collectives["all-reduce"].count
    large = compile_for(batch_per_core=1 << 20)
    assert not large.fits and large.hbm_margin < 0 and large.seconds is None
    for topology in ("v9:2x2", "v3:5x5", "v3", ""):
        with pytest.raises(UsageError, match="unknown topology"):
            compile_for(topology)
