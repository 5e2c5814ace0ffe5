"""Timing: what is run how often and in which order, and what is said of devices and memory."""

import jax
import jax.numpy as jnp
import pytest

from effnetv2_jax.benchmarks.timing import measure, timed_model
from effnetv2_jax.models import model_info
from effnetv2_jax.runtime.errors import UsageError


def test_a_timing_is_its_median_with_the_extremes():
    timing = measure.Timing((0.003, 0.001, 0.002))
    assert (timing.median, timing.low, timing.high) == (0.002, 0.001, 0.003)
    assert str(timing) == "2 ms (median of 3, 1 to 3)"


def test_things_take_turns_and_none_is_always_first():
    assert "".join(name for _, name in measure.turns("ab", 3)) == "ba" + "ab" + "ba"
    assert [number for number, _ in measure.turns("ab", 3)] == [0, 0, 1, 1, 2, 2]


def test_a_run_is_waited_for_and_the_first_ones_do_not_count():
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 40, lambda i, y: jnp.tanh(y @ y), x))
    x = jnp.ones((400, 400))
    jax.block_until_ready(slow(x))
    results = []
    timing = measure.time_runs(lambda: results.append(slow(x)) or results, repeats=3)
    assert len(results) == 5 and len(timing.seconds) == 3
    assert results[-1].is_ready() and timing.low > 1e-3


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("NVIDIA H100 80GB", 989e12),
        ("cpu", None),
    ],
)
def test_a_peak_is_that_of_the_longest_name_that_fits(kind, peak):
    assert measure.peak_flops(kind) == peak


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inference_is_compiled_to_be_timed(dtype):
    compiled = timed_model.compile_inference(
        "efficientnetv2-tiny", image_size=32, batch_size=2, dtype=dtype
    )
    info = model_info("efficientnetv2-tiny", image_size=32)
    assert compiled.flops == 2 * 2 * info.multiply_adds
    assert compiled.run().shape == (2, 1000)
    timing = measure.Timing((0.5,))
    expected = compiled.flops / 0.5 / measure.measured_peak_flops()
    assert compiled.mfu(timing) == pytest.approx(expected)


def test_a_model_that_does_not_fit_is_a_result(monkeypatch):
    monkeypatch.setattr(timed_model, "_memory_limit", lambda: 1000)
    compiled = timed_model.compile_inference("efficientnetv2-tiny", image_size=32, batch_size=2)
    assert compiled.run is None and compiled.memory > 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int8"}, "unknown dtype 'int8': .*allowed are bfloat16, float16, float32"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"model": "efficientnetv2-tinny"}, "did you mean efficientnetv2-tiny"),
    ],
)
def test_what_cannot_be_used_is_named(change, message):
    arguments = {"model": "efficientnetv2-tiny", "batch_size": 1, "dtype": "float32"} | change
    with pytest.raises(UsageError, match=message):
        timed_model.compile_inference(image_size=32, **arguments)
