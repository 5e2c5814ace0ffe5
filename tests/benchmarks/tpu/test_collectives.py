"""Counting collectives: on HLO text by hand, as CPUs and TPUs have it, and on compiled programs."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from effnetv2_jax.benchmarks.tpu.collectives import Collectives, collectives_of
from effnetv2_jax.training.mesh import AXES, make_mesh

ADD = """
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}
"""


def program(*lines, before=""):
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m\n{ADD}{before}\nENTRY %main (p: f32[4]) -> f32[4] {{\n{body}\n}}\n"


SNIPPETS = {
    "nothing": (("ROOT %p = f32[4]{0} parameter(0)",), {}),
    "one array": (
        (
            "%p = f32[4,3]{1,0} parameter(0)",
            'ROOT %r = f32[4,3]{1,0} all-reduce(%p), to_apply=%add, metadata={op_name="psum(x)"}',
        ),
        {"all-reduce": Collectives(1, 48)},
    ),
    "several arrays in one, and a scalar": (
        (
            "%p = f32[4]{0} parameter(0)",
            "%q = bf16[8]{0} parameter(1)",
            "%s = pred[] parameter(2)",
            "ROOT %r = (f32[4]{0}, bf16[8]{0}, /*index=2*/pred[]) all-reduce(%p, %q, %s), "
            "to_apply=%add",
        ),
        {"all-reduce": Collectives(1, 16 + 16 + 1)},
    ),
    "layouts of a TPU, types of operands": (
        (
            "%p = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)",
            "ROOT %r = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} "
            "all-reduce(bf16[8,128]{1,0:T(8,128)(2,1)S(1)} %p), to_apply=%add",
        ),
        {"all-reduce": Collectives(1, 2048)},
    ),
    "asynchronous halves": (
        (
            "%p = f32[4]{0:T(256)} parameter(0)",
            "%a = f32[4]{0:T(256)} all-reduce-start(%p), to_apply=%add",
            "%b = f32[4]{0:T(256)} all-reduce-done(%a)",
            "%c = (f32[4]{0:T(256)}, f32[32]{0:T(256)}) all-gather-start(%b), dimensions={0}",
            "ROOT %d = f32[32]{0:T(256)} all-gather-done(%c)",
        ),
        {"all-reduce": Collectives(1, 16), "all-gather": Collectives(1, 128)},
    ),
    "gathered and scattered": (
        (
            "%p = f32[4]{0} parameter(0)",
            "%g = f32[32]{0} all-gather(%p), dimensions={0}",
            "ROOT %s = f32[4]{0} reduce-scatter(%g), dimensions={0}, to_apply=%add",
        ),
        {"all-gather": Collectives(1, 128), "reduce-scatter": Collectives(1, 128)},
    ),
}


@pytest.mark.parametrize("name", SNIPPETS)
def test_what_is_exchanged_is_counted(name):
    lines, expected = SNIPPETS[name]
    assert collectives_of(program(*lines)) == expected


WRAPPED = """
%wrapped (w: f32[32]) -> f32[4] {
  %w = f32[32]{0} parameter(0)
  ROOT %s = f32[4]{0} reduce-scatter(%w), dimensions={0}, to_apply=%add
}
"""


def test_an_asynchronous_call_counts_what_it_wraps_once():
    text = program(
        "%p = f32[32]{0} parameter(0)",
        "%a = ((f32[32]{0}), f32[4]{0}, s32[]) async-start(%p), calls=%wrapped",
        "%b = ((f32[32]{0}), f32[4]{0}, s32[]) async-update(%a), calls=%wrapped",
        "ROOT %c = f32[4]{0} async-done(%b), calls=%wrapped",
        before=WRAPPED,
    )
    assert collectives_of(text) == {"reduce-scatter": Collectives(1, 128)}


LOOP = """
%body (b: (s32[], f32[4])) -> (s32[], f32[4]) {
  %b = (s32[]{:T(256)}, f32[4]{0:T(256)}) parameter(0)
  %i = s32[]{:T(256)} get-tuple-element(%b), index=0
  %x = f32[4]{0:T(256)} get-tuple-element(%b), index=1
  %r = f32[4]{0:T(256)} all-reduce(%x), to_apply=%add
  ROOT %t = (s32[]{:T(256)}, f32[4]{0:T(256)}) tuple(%i, %r)
}

%condition (c: (s32[], f32[4])) -> pred[] {
  %c = (s32[]{:T(256)}, f32[4]{0:T(256)}) parameter(0)
  %j = s32[]{:T(256)} get-tuple-element(%c), index=0
  %n = s32[]{:T(256)} BOUND
  ROOT %less = pred[]{:T(1024)} compare(%j, %n), direction=LT
}
"""


@pytest.mark.parametrize(
    ("bound", "config", "runs"),
    [
        ("constant(4)", "", 4),
        ("parameter(1)", 'backend_config={"known_trip_count":{"n":"3"}}', 3),
        ("parameter(1)", "", 1),
    ],
    ids=["TPU", "CPU", "unknown"],
)
def test_a_loop_counts_as_often_as_it_runs(bound, config, runs):
    text = program(
        "%p = (s32[], f32[4]{0}) parameter(0)",
        f"ROOT %w = (s32[], f32[4]{{0}}) while(%p), condition=%condition, body=%body, {config}",
        before=LOOP.replace("BOUND", bound),
    )
    assert collectives_of(text) == {"all-reduce": Collectives(runs, 16 * runs)}


def test_compiled_for_eight_devices():
    def step(x, y):
        def body(carry, _):
            return lax.pmean(jnp.sin(carry), AXES), None

        looped, _ = lax.scan(body, x, length=5)
        gathered = lax.all_gather(y * looped.sum(), "fsdp", tiled=True)
        summed, count = lax.psum((gathered, looped[0]), AXES)
        return lax.psum_scatter(summed * count, "fsdp", tiled=True)

    mesh = make_mesh(fsdp=2)
    sharded = PartitionSpec("fsdp")
    compiled = (
        jax.jit(
            jax.shard_map(
                step,
                mesh=mesh,
                in_specs=(PartitionSpec(), sharded),
                out_specs=sharded,
                check_vma=False,
            )
        )
        .lower(jnp.ones(6), jnp.ones((16, 3)))
        .compile()
    )
    found = collectives_of(compiled.as_text())
    assert found["all-gather"] == Collectives(1, 16 * 3 * 4)
    assert found["reduce-scatter"] == Collectives(1, 16 * 3 * 4)
    # Five of the loop; the sum of two arrays, which XLA may leave as two.
    assert found["all-reduce"].count in (6, 7)
    assert found["all-reduce"].bytes == 5 * 6 * 4 + 16 * 3 * 4 + 4
