"""Our convolutions and activations against XLA's own and what JAX derives from them."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import Mesh, PartitionSpec

from effnetv2_jax.models.kernels import convolutions
from effnetv2_jax.models.kernels.activations import ACTIVATIONS, Origin, gated, scale_shift
from tests.models.kernels.against_xla import assert_close, normal, reference, with_gradients

KINDS = {
    "conv 6 → 4": (convolutions.conv, 6, 4),
    "conv 3 → 8": (convolutions.conv, 3, 8),
    "depthwise": (convolutions.depthwise_conv, 3, 3),
}


def arguments(kind, size, batch=2, height=5, width=8, dtype=jnp.float32):
    function, inputs, outputs = KINDS[kind]
    depth = 1 if function is convolutions.depthwise_conv else inputs
    kernel = normal(size, size, size, depth, outputs, dtype=dtype)
    return function, normal(0, batch, height, width, inputs, dtype=dtype), kernel


def equal_to_reference(kind, size, options, images, dtype=jnp.float32, tolerance=1e-6):
    """One program for all images: most of the time goes into compiling."""
    function = KINDS[kind][0]
    cases = [arguments(kind, size, *image, dtype=dtype)[1:] for image in images]

    @jax.jit
    def both(cases):
        return [
            [with_gradients(f, *case, **o) for f in (function, reference)]
            for case, o in itertools.product(cases, options)
        ]

    for ours, expected in both(cases):
        assert_close(ours, expected, tolerance)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_both_gradients_are_xlas(kind, size, stride):
    """Also of images that are smaller than the kernel, where taps see nothing but padding."""
    options = [{"stride": stride, "padding": padding} for padding in convolutions.PADDINGS]
    images = [(2, 5, 8)] if size == 7 else [(2, 5, 8), (3, 2, 1)]
    equal_to_reference(kind, size, options, images)


@pytest.mark.parametrize("kind", ["conv 3 → 8", "depthwise"])
def test_bfloat16_is_as_exact_as_xlas(kind):
    options = [{"stride": stride} for stride in (1, 2)]
    equal_to_reference(kind, 3, options, [(2, 6, 6)], jnp.bfloat16, tolerance=2e-2)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_a_bias_and_an_activation_are_what_comes_after_a_convolution(
    as_if_on, platform, activation
):
    """Also of its gradients, which somebody may want of a network with folded batch norm."""
    as_if_on(platform)
    x, kernel, bias = normal(0, 2, 5, 8, 3), normal(1, 3, 3, 1, 3), normal(2, 3)

    def gradients(function):
        out, pull = jax.vjp(function, x, kernel, bias)
        return out, *pull(jnp.cos(out))

    def plain(x, kernel, bias):
        y = reference(x, kernel, 2, "symmetric") + bias
        return y if activation is None else ACTIVATIONS[activation](y)

    ours = functools.partial(
        convolutions.biased_depthwise_conv, stride=2, padding="symmetric", activation=activation
    )
    assert_close(gradients(ours), gradients(plain), 1e-6)


def test_on_cpu_bias_and_activation_are_in_the_loop_that_convolves():
    x, kernel, bias = normal(0, 2, 8, 8, 4), normal(1, 3, 3, 1, 4), normal(2, 4)

    @jax.jit
    def block(x, kernel, bias):
        return convolutions.biased_depthwise_conv(jnp.tanh(x), kernel, bias, activation="silu")

    text = block.lower(x, kernel, bias).compile().as_text()
    # What comes before goes into the padded array, the rest is one loop.
    _, entry = text.split("\nENTRY")
    assert len(re.findall(r"= f32\[2,8,8,4\]\S* (?:fusion|call)\(", entry)) == 1, entry


@pytest.mark.parametrize("batch", [16, 17, 40])
def test_the_kernel_gradient_counts_every_image(batch):
    """Images are added to each other in groups, of which not every batch is a multiple."""
    equal_to_reference("depthwise", 3, [{}], [(batch, 4, 4)])


def test_a_convolution_of_one_pixel_is_a_matrix_product():
    for inputs, outputs in ((3, 5), (5, 3)):
        x, kernel = normal(0, 2, 4, 3, inputs), normal(1, 1, 1, inputs, outputs)
        for stride in (1, 2):
            ours = with_gradients(convolutions.conv, x, kernel, stride=stride)
            assert_close(ours, with_gradients(reference, x, kernel, stride=stride), 1e-6)


@pytest.mark.parametrize("kind", ["conv 3 → 8", "depthwise"])
def test_vmap_of_values_and_gradients(kind):
    function, x, kernel = arguments(kind, 3)
    xs, kernels = jnp.stack([x, x[::-1]]), jnp.stack([kernel, 2 * kernel])
    ours = jax.jit(jax.vmap(lambda x, k: with_gradients(function, x, k)))(xs, kernels)
    expected = [
        jnp.stack(each)
        for each in zip(
            *(with_gradients(reference, *pair) for pair in zip(xs, kernels, strict=True)),
            strict=True,
        )
    ]
    assert_close(ours, expected, 1e-6)


def test_shard_map_over_the_batch():
    function, x, kernel = arguments("depthwise", 3, batch=8)
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))

    def gradients(x, kernel):
        out, dx, dkernel = with_gradients(function, x, kernel)
        return out, dx, lax.psum(dkernel, "data")

    data, copied = PartitionSpec("data"), PartitionSpec()
    ours = jax.jit(
        jax.shard_map(
            gradients,
            mesh=mesh,
            in_specs=(data, copied),
            out_specs=(data, data, copied),
            check_vma=False,
        )
    )(x, kernel)
    assert_close(ours, with_gradients(reference, x, kernel), 1e-6)


def test_second_derivatives():
    function, x, kernel = arguments("depthwise", 3)

    def squares(f):
        def gradient(x):
            return jax.grad(lambda x: (f(x, kernel) ** 2).sum())(x)

        return jax.grad(lambda x: (gradient(x) ** 2).sum())(x)

    assert_close([squares(function)], [squares(reference)], 1e-5)


@pytest.mark.parametrize(
    ("kind", "stride", "on_cpu"),
    [
        ("conv 6 → 4", 1, 3),
        ("conv 6 → 4", 2, 2),
        ("conv 3 → 8", 1, 2),
        ("conv 3 → 8", 2, 1),
        ("depthwise", 1, 0),
        ("depthwise", 2, 0),
    ],
)
def test_each_platform_gets_its_own_lowering(kind, stride, on_cpu):
    function, x, kernel = arguments(kind, 3)

    def lowered(platform):
        program = jax.jit(lambda x, kernel: with_gradients(function, x, kernel, stride=stride))
        return export.export(program, platforms=[platform])(x, kernel).mlir_module()

    convolutions_of = {p: lowered(p).count("stablehlo.convolution") for p in ("cpu", "tpu", "cuda")}
    # Forward and two gradients, of which some are sums and products on CPU.
    assert convolutions_of == {"cpu": on_cpu, "tpu": 3, "cuda": 3}


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scale_and_shift_has_the_gradients_that_jax_derives(activation, dtype):
    x, scale, shift = normal(0, 2, 3, 3, 4, dtype=dtype), 3 * normal(1, 4), normal(2, 4)

    def plain(x, scale, shift):
        z = (x.astype(jnp.float32) * scale + shift).astype(dtype)
        return z if activation is None else ACTIVATIONS[activation](z)

    def gradients(function):
        out, pull = jax.vjp(function, x, scale, shift)
        return out, *pull(jnp.sin(out))

    ours = gradients(lambda *arguments: scale_shift(*arguments, activation, dtype))
    assert_close(ours, gradients(plain), 1e-6 if dtype == jnp.float32 else 1e-2)


def test_training_keeps_what_an_activation_came_from_alone():
    """Neither the activation's derivative nor its result: the backward pass makes them anew."""
    x = normal(0, 2, 8, 8, 4)
    _, pull = jax.vjp(lambda x: scale_shift(x, jnp.ones(4), jnp.zeros(4), "silu", x.dtype), x)
    kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.size >= x.size]
    assert len(kept) == 1
    np.testing.assert_array_equal(kept[0], x)


def test_what_is_isolated_stays_a_call_on_cpu():
    """Fused into every tap, an activation before a convolution would be computed nine times."""

    def block(x, kernel):
        return convolutions.depthwise_conv(jnp.tanh(x), kernel)

    _, x, kernel = arguments("depthwise", 3)
    text = jax.jit(block).lower(x, kernel).compile().as_text()
    assert text.count(" tanh(") == 1
    assert " call(" in text


def with_origin(x, scale, shift, gate, kernel):
    """What a block does after its first convolution, by our functions."""
    origin = Origin(x, scale, shift, "silu", x.dtype)
    z = convolutions.depthwise_conv(origin.value(), kernel["depthwise"], origin=origin)
    origin = Origin(z, scale, shift, "silu", x.dtype)
    gated_value = gated(origin.value(), gate, origin)
    origin = Origin(z, scale, shift, "silu", x.dtype, gate)
    return convolutions.conv(gated_value, kernel["project"], origin=origin)


def without_origin(x, scale, shift, gate, kernel):
    """The same by XLA's functions and JAX's derivatives."""
    z = reference(jax.nn.silu(x * scale + shift), kernel["depthwise"])
    return reference(jax.nn.silu(z * scale + shift) * gate, kernel["project"])


def of_a_block():
    kernel = {"depthwise": normal(4, 3, 3, 1, 6), "project": normal(5, 1, 1, 6, 4)}
    gate = jax.nn.sigmoid(normal(3, 2, 1, 1, 6))
    return normal(0, 2, 5, 4, 6), normal(1, 6), normal(2, 6), gate, kernel


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_an_origin_changes_no_gradient(as_if_on, platform):
    """Neither where it is not used nor, as on TPU, where activations are computed again from it."""
    as_if_on(platform)

    def gradients(block):
        out, pull = jax.vjp(block, *of_a_block())
        return jax.tree.leaves((out, pull(jnp.cos(out))))

    assert_close(gradients(with_origin), gradients(without_origin), 1e-5)


def test_an_activation_is_computed_again_on_tpu_alone():
    def lowered(platform):
        block = jax.jit(jax.grad(lambda *arguments: with_origin(*arguments).sum(), range(5)))
        return export.export(block, platforms=[platform])(*of_a_block()).mlir_module()

    again = {p: lowered(p).count("stablehlo.optimization_barrier") for p in ("cpu", "tpu", "cuda")}
    # For the gradients of the two convolutions and of the gate.
    assert again == {"cpu": 0, "tpu": 3, "cuda": 0}
