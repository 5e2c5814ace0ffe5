"""Convolutions and their gradients against XLA's own."""

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
from effnetv2_jax.models.kernels.activations import ACTIVATIONS
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
    """The second image is smaller than the kernel, so that some taps see only padding."""
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
    """Gradients too, which a user may want from a network with folded batch norm."""
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
    # tanh writes into the padded array; the rest is one loop.
    _, entry = text.split("\nENTRY")
    assert len(re.findall(r"= f32\[2,8,8,4\]\S* (?:fusion|call)\(", entry)) == 1, entry


@pytest.mark.parametrize("batch", [16, 17, 40])
def test_the_kernel_gradient_counts_every_image(batch):
    """Images are added up in groups, and not every batch is a multiple of a group."""
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
    # Forward and two gradients. On CPU, some of them are sums and products.
    assert convolutions_of == {"cpu": on_cpu, "tpu": 3, "cuda": 3}


def test_what_is_isolated_stays_a_call_on_cpu():
    """Otherwise each of nine taps would compute the activation before the convolution again."""

    def block(x, kernel):
        return convolutions.depthwise_conv(jnp.tanh(x), kernel)

    _, x, kernel = arguments("depthwise", 3)
    text = jax.jit(block).lower(x, kernel).compile().as_text()
    assert text.count(" tanh(") == 1
    assert " call(" in text


@pytest.mark.parametrize(
    "function, channels, kernel, stride",
    [
        (convolutions.conv, 8, (1, 1, 8, 12), 1),
        (convolutions.conv, 32, (3, 3, 32, 32), 1),
        (convolutions.conv, 3, (3, 3, 3, 8), 2),
        (convolutions.conv, 8, (3, 3, 8, 8), 2),
        (convolutions.depthwise_conv, 8, (3, 3, 1, 8), 2),
    ],
)
def test_forward_mode_and_batches_are_those_of_xla(function, channels, kernel, stride):
    x, kernel = normal(0, 2, 3, 8, 8, channels), normal(1, *kernel)
    dx, dkernel = jnp.cos(x), jnp.cos(kernel)

    def derivatives(function):
        def loss(kernel):
            return jnp.sin(jax.vmap(lambda x: function(x, kernel, stride))(x)).sum()

        def along(x, dx):
            return jax.jvp(lambda *args: function(*args, stride), (x, kernel), (dx, dkernel))[1]

        return jax.vmap(along)(x, dx), jax.grad(loss)(kernel)

    assert_close(
        jax.jit(lambda: derivatives(function))(), jax.jit(lambda: derivatives(reference))(), 1e-4
    )
