"""Shapes, counts, initialisers, randomness, modes and errors of EfficientNets."""

import dataclasses
import functools
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import effnetv2_jax
from effnetv2_jax.models import (
    EfficientNet,
    EfficientNetSpec,
    FusedMBConv,
    GroupSpec,
    MBConv,
    abstract_model,
    count_multiply_adds,
    count_parameters,
    create_model,
    list_models,
    model_info,
)
from effnetv2_jax.models.initializers import (
    conv_kernel_init,
    dense_kernel_init,
    depthwise_kernel_init,
)
from effnetv2_jax.models.kernels.convolutions import depthwise_conv
from effnetv2_jax.models.layers import BatchNorm, dropout, stochastic_depth, uniform_by_example
from effnetv2_jax.runtime.errors import UsageError

# Counted by building the official model (github.com/google/automl, efficientnetv2) with 1000
# classes.
OFFICIAL_PARAMETERS = {
    "efficientnetv2-b0": 7139704,
    "efficientnetv2-b1": 8141052,
    "efficientnetv2-b2": 10096086,
    "efficientnetv2-b3": 14358406,
    "efficientnetv2-s": 21458488,
    "efficientnetv2-m": 54139356,
    "efficientnetv2-l": 118515272,
    "efficientnetv2-xl": 208119808,
    "efficientnet-b0": 5288548,
    "efficientnet-b1": 7794184,
    "efficientnet-b2": 9109994,
    # Counted in keras.applications: the published weights have 24 filters in B3's first group,
    # which the official model builds with 16.
    "efficientnet-b3": 12233232,
    "efficientnet-b4": 19341616,
    "efficientnet-b5": 30389784,
    "efficientnet-b6": 43040704,
    "efficientnet-b7": 66347960,
    "efficientnet-b8": 87413142,
    "efficientnet-l2": 480309308,
}
# Counted by building tf_efficientnet_lite0 … 4 and efficientnetv2_rw_t of timm 1.0.31.
TIMM_PARAMETERS = {
    "efficientnet-lite0": 4652008,
    "efficientnet-lite1": 5416680,
    "efficientnet-lite2": 6092072,
    "efficientnet-lite3": 8197096,
    "efficientnet-lite4": 13006568,
    "efficientnetv2-rw-t": 13649388,
}
# Table 3, as near as its definition allows (see efficientnet_specs).
HYBRID_MILLIONS = {
    "efficientnet-b4-fused-1-3": 20.9,
    "efficientnet-b4-fused-1-5": 43.5,
    "efficientnet-b4-fused-1-7": 132.1,
}

VARIABLES = nnx.Any(nnx.Param, nnx.BatchStat)

# One program of each kind for all tests.
forward = nnx.jit(lambda model, x: model(x))
features = nnx.jit(lambda model, x: model.features(x))
forward_by_mode = {
    train: nnx.jit(functools.partial(lambda model, x, train: model(x, train=train), train=train))
    for train in (True, False)
}
traces = []


@nnx.jit
def train_step(model, x, seed, rate, index):
    traces.append(model)
    rngs = nnx.Rngs(dropout=jax.random.key(seed))
    return model(x, train=True, rngs=rngs, dropout_rate=rate, index=index)


def train(model: EfficientNet, x: jax.Array, *, seed=0, rate=0.5, index=None) -> np.ndarray:
    index = np.arange(len(x)) if index is None else index
    return np.asarray(train_step(model, x, jnp.uint32(seed), jnp.float32(rate), index))


def arrays(model: nnx.Module, kind=VARIABLES) -> dict[tuple, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model, kind))
    return {path: np.asarray(variable[...]) for path, variable in flat}


def noise(*shape: int) -> jax.Array:
    # From NumPy: jax.random.normal takes seconds to compile for every shape.
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


# Parameters and multiply-adds.


@pytest.mark.parametrize(("name", "expected"), [*OFFICIAL_PARAMETERS.items()])
def test_parameters_equal_the_official_models_to_the_last(name, expected):
    assert count_parameters(abstract_model(name)) == expected


@pytest.mark.parametrize(("name", "expected"), [*TIMM_PARAMETERS.items()])
def test_parameters_of_lite_and_rw_t_equal_timm_to_the_last(name, expected):
    assert count_parameters(abstract_model(name)) == expected


@pytest.mark.parametrize(("name", "expected"), [*HYBRID_MILLIONS.items()])
def test_parameters_of_the_hybrids_of_table_3(name, expected):
    assert round(count_parameters(abstract_model(name)) / 1e6, 1) == expected


def test_every_listed_model_has_a_known_parameter_count():
    known = {*OFFICIAL_PARAMETERS, *TIMM_PARAMETERS, *HYBRID_MILLIONS}
    # The tiny one is not published.
    assert list_models("efficientnet*") == sorted({*known, "efficientnetv2-tiny"})


@pytest.mark.parametrize(
    ("name", "expected"),
    [("efficientnetv2-b0", 0.72e9), ("efficientnetv2-s", 8.4e9), ("efficientnet-b0", 0.39e9)],
)
def test_multiply_adds_are_the_published_ones(name, expected):
    info = model_info(name)
    assert info.multiply_adds == pytest.approx(expected, rel=0.02)
    assert info.parameters == OFFICIAL_PARAMETERS[name]
    assert info.image_size == info.eval_size


def test_model_info_counts_at_the_size_and_classes_asked_for():
    info = model_info("efficientnetv2-b0", num_classes=10, image_size=448)
    assert info.parameters == OFFICIAL_PARAMETERS["efficientnetv2-b0"] - 990 * 1281
    assert info.image_size == 448
    # Four times the pixels.
    assert info.multiply_adds == pytest.approx(4 * 0.72e9, rel=0.02)


def test_multiply_adds_of_a_matrix_product():
    a, b = jax.ShapeDtypeStruct((3, 4), jnp.float32), jax.ShapeDtypeStruct((4, 5), jnp.float32)
    assert count_multiply_adds(jnp.matmul, a, b) == 3 * 4 * 5


def test_multiply_adds_of_a_batched_matrix_product():
    a = jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)
    b = jax.ShapeDtypeStruct((2, 4, 5), jnp.float32)
    assert count_multiply_adds(jnp.matmul, a, b) == 2 * 3 * 4 * 5


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_multiply_adds_of_a_convolution(groups):
    def function(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (2, 2),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    x = jax.ShapeDtypeStruct((2, 7, 8, 6), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 5, 6 // groups, 12), jnp.float32)
    assert count_multiply_adds(function, x, kernel) == (2 * 4 * 4 * 12) * (3 * 5 * 6 // groups)


def test_multiply_adds_of_a_scan_are_taken_length_times():
    def function(x, w):
        return lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]

    x, w = jax.ShapeDtypeStruct((3, 4), jnp.float32), jax.ShapeDtypeStruct((4, 4), jnp.float32)
    assert count_multiply_adds(function, x, w) == 7 * 3 * 4 * 4


def test_multiply_adds_inside_nested_jit_and_checkpoint_are_counted_once():
    inner = jax.jit(lambda x, w: jax.jit(jnp.matmul)(x, w) + 1)
    x, w = jax.ShapeDtypeStruct((3, 4), jnp.float32), jax.ShapeDtypeStruct((4, 4), jnp.float32)
    assert count_multiply_adds(inner, x, w) == 3 * 4 * 4
    assert count_multiply_adds(jax.checkpoint(inner), x, w) == 3 * 4 * 4


def test_multiply_adds_of_a_depthwise_convolution_do_not_depend_on_its_lowering():
    x = jax.ShapeDtypeStruct((1, 8, 8, 6), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 1, 6), jnp.float32)
    assert count_multiply_adds(depthwise_conv, x, kernel) == 8 * 8 * 6 * 9


# Shapes and dtypes.


@pytest.mark.parametrize(("height", "width"), [(33, 47), (1, 1), (64, 17)])
def test_features_of_any_image_size_have_strides_2_to_32(height, width):
    model = abstract_model("efficientnetv2-b0")
    x = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    found = nnx.eval_shape(lambda model, x: model.features(x), model, x)
    filters = [16, 32, 48, 112, 192]
    assert {name: value.shape for name, value in found.items()} == {
        f"reduction_{i}": (2, -(-height // 2**i), -(-width // 2**i), filters[i - 1])
        for i in range(1, 6)
    }


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 9), (1, 2)])
def test_logits_are_finite_float32_for_any_image_size(tiny_model, height, width):
    logits = forward(tiny_model, jnp.ones((2, height, width, 3)))
    assert logits.shape == (2, 10)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zero_classes_give_float32_pooled_features(tiny_spec, tiny_images, dtype):
    model = EfficientNet(tiny_spec, num_classes=0, dtype=dtype, rngs=nnx.Rngs(0))
    pooled = nnx.eval_shape(lambda model, x: model(x), model, tiny_images)
    assert pooled.shape == (8, tiny_spec.head_filters)
    assert pooled.dtype == jnp.float32
    assert "classifier" not in {path[0] for path in arrays(model)}


def test_pooled_features_are_what_the_classifier_sees(tiny_spec, tiny_model, tiny_images):
    headless = EfficientNet(tiny_spec, num_classes=0, rngs=nnx.Rngs(0))
    pooled = forward(headless, tiny_images)
    np.testing.assert_allclose(
        pooled @ tiny_model.classifier.kernel[...], forward(tiny_model, tiny_images), atol=1e-5
    )


def test_bfloat16_computation_keeps_parameters_and_logits_float32(
    tiny_spec, tiny_model, tiny_images
):
    model = EfficientNet(tiny_spec, num_classes=10, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    dtypes = {value.dtype for value in arrays(model).values()}
    assert dtypes == {np.dtype("float32")}
    found = nnx.eval_shape(lambda model, x: model.features(x), model, tiny_images)
    assert {value.dtype for value in found.values()} == {jnp.dtype("bfloat16")}
    logits, exact = forward(model, tiny_images), forward(tiny_model, tiny_images)
    assert logits.dtype == jnp.float32
    error = np.abs(logits - exact).max() / np.abs(exact).max()
    # Eight bits of mantissa. An error of 0 would mean that nothing is computed in bfloat16.
    assert 0 < error < 0.05


# Initialisers.


def assert_standard_deviation(values: np.ndarray, expected: float) -> None:
    """Allows five standard errors of a normal sample, for the deviation and for a mean of 0."""
    assert values.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * values.size))
    assert abs(values.mean()) < 5 * expected / math.sqrt(values.size)


@pytest.mark.parametrize("shape", [(3, 3, 3, 32), (1, 1, 96, 64), (3, 3, 64, 128)])
def test_convolutions_start_normal_by_their_fan_out(shape):
    kernel = np.asarray(conv_kernel_init(jax.random.key(0), shape))
    assert kernel.shape == shape
    assert kernel.dtype == np.float32
    assert_standard_deviation(kernel, math.sqrt(2 / (shape[0] * shape[1] * shape[3])))


def test_initialisation_is_not_truncated():
    kernel = np.asarray(conv_kernel_init(jax.random.key(0), (3, 3, 64, 128)))
    beyond = np.mean(np.abs(kernel) > 2 * kernel.std())
    assert beyond == pytest.approx(math.erfc(math.sqrt(2)), rel=0.1)


@pytest.mark.parametrize("size", [3, 5])
def test_depthwise_convolutions_start_normal_by_their_window(size):
    kernel = np.asarray(depthwise_kernel_init(jax.random.key(0), (size, size, 1, 384)))
    assert kernel.shape == (size, size, 1, 384)
    assert_standard_deviation(kernel, math.sqrt(2 / size**2))


def test_dense_kernel_starts_uniform_by_its_classes():
    kernel = np.asarray(dense_kernel_init(jax.random.key(0), (300, 100)))
    assert np.abs(kernel).max() <= 0.1
    assert np.abs(kernel).max() > 0.0999
    assert_standard_deviation(kernel, 0.1 / math.sqrt(3))


def test_large_kernels_repeat_nothing():
    """Kernels are drawn in chunks, and the keys of the chunks must differ."""
    kernel = np.asarray(conv_kernel_init(jax.random.key(0), (3, 3, 128, 128)))
    assert len(np.unique(kernel)) > 0.99 * kernel.size


def test_every_layer_of_a_model_has_its_initialiser(tiny_spec):
    model = EfficientNet(tiny_spec, num_classes=100, rngs=nnx.Rngs(0))
    for path, value in arrays(model).items():
        if path[-1] in ("scale", "var"):
            np.testing.assert_array_equal(value, 1.0)
        elif path[-1] in ("bias", "mean"):
            # In batch norm, SE and the classifier.
            np.testing.assert_array_equal(value, 0.0)
        elif path == ("classifier", "kernel"):
            assert 0.099 < np.abs(value).max() <= 0.1
        else:
            height, width, _, out = value.shape
            fan_out = height * width * (1 if "depthwise" in path else out)
            assert_standard_deviation(value, math.sqrt(2 / fan_out))


def test_eager_initialisation_equals_the_one_under_jit(tiny_spec):
    def init():
        return EfficientNet(tiny_spec, num_classes=10, rngs=nnx.Rngs(3))

    eager, jitted = arrays(init(), nnx.Param), arrays(nnx.jit(init)(), nnx.Param)
    assert eager.keys() == jitted.keys()
    for path, value in eager.items():
        np.testing.assert_array_equal(value, jitted[path], err_msg=str(path))


def test_eager_initialisation_of_many_chunks_equals_the_one_under_jit():
    key, shape = jax.random.key(0), (3, 3, 64, 128)
    jitted = jax.jit(conv_kernel_init, static_argnums=1)(key, shape)
    np.testing.assert_array_equal(conv_kernel_init(key, shape), jitted)


def test_seeds_and_layers_differ_and_equal_seeds_agree(tiny_spec):
    def kernels(seed):
        model = EfficientNet(tiny_spec, num_classes=10, rngs=nnx.Rngs(seed))
        return {k: v for k, v in arrays(model, nnx.Param).items() if k[-1] == "kernel"}

    first, again, other = kernels(0), kernels(0), kernels(1)
    for path, value in first.items():
        np.testing.assert_array_equal(value, again[path])
        assert not np.array_equal(value, other[path]), path
    starts = [value.reshape(-1)[0] / value.std() for value in first.values()]
    assert len(set(starts)) == len(starts)


# Batch norm.


def test_batch_norm_of_a_constant_channel_has_no_negative_variance():
    norm = BatchNorm(2)
    y = norm(jnp.full((64, 3, 3, 2), 1000.1), train=True)
    assert np.isfinite(y).all()
    assert (norm.var[...] >= 0).all()


def test_batch_norm_moves_its_statistics_by_the_biased_moments():
    norm = BatchNorm(4, momentum=0.75)
    x = noise(3, 2, 2, 4) * 2 + 1
    y = norm(x, train=True).array
    np.testing.assert_allclose(norm.mean[...], 0.25 * x.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(norm.var[...], 0.75 + 0.25 * x.var((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1.0, atol=2e-3)


# Stochastic depth and dropout.


def drop_path(x, rate, key, index=None):
    """Calls ``stochastic_depth`` with the arguments of ``dropout``."""
    index = jnp.arange(len(x)) if index is None else index
    return stochastic_depth(x, rate, uniform_by_example(key, index))


def test_stochastic_depth_drops_whole_images_and_rescales_the_others():
    x = jnp.ones((20000, 2, 2, 3))
    y = np.asarray(drop_path(x, 0.8, jax.random.key(0))).reshape(20000, -1)
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.8)}
    assert (y.max(1) == y.min(1)).all()
    # The mean is unchanged; 0.0035 is the standard error.
    assert y.mean() == pytest.approx(1.0, abs=0.015)


@pytest.mark.parametrize("drop", [drop_path, dropout])
def test_an_images_number_decides_what_is_dropped_of_it(drop):
    x, key = jnp.ones((4000, 3)), jax.random.key(0)
    y = np.asarray(drop(x, 0.5, key))
    np.testing.assert_array_equal(drop(x, 0.5, key, jnp.arange(4000)), y)
    rows = np.random.default_rng(0).permutation(4000)[:50]
    np.testing.assert_array_equal(drop(x[:50], 0.5, key, jnp.asarray(rows)), y[rows])
    # Neighbours are independent, and so are layers, which have different keys; 0.016 is the
    # standard error.
    other = np.asarray(drop(x, 0.5, jax.random.key(1)))
    for a, b in ((y[:-1], y[1:]), (y, other)):
        assert abs(np.corrcoef(a[:, 0], b[:, 0])[0, 1]) < 0.07


def test_blocks_in_a_row_drop_different_images():
    block = MBConv(8, 8, survival_prob=0.5, rngs=nnx.Rngs(0))

    @nnx.jit
    def branches(block, x):
        rngs = nnx.Rngs(dropout=7)
        return [block(x, train=True, rngs=rngs) - x for _ in range(2)]

    first, second = (np.abs(y).max((1, 2, 3)) > 0 for y in branches(block, noise(64, 4, 4, 8)))
    assert 0.2 < (first == second).mean() < 0.8


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_an_image_has_the_same_fate_wherever_in_the_batch_it_lies(tiny_spec, tiny_images, remat):
    model = EfficientNet(tiny_spec, num_classes=10, remat=remat, rngs=nnx.Rngs(0))
    rows = np.array([3, 1, 7, 5, 0, 2, 6, 4])
    expected = train(model, tiny_images, seed=3)
    moved = train(model, tiny_images[rows], seed=3, index=rows)
    np.testing.assert_allclose(moved, expected[rows], rtol=1e-4, atol=1e-5)
    assert np.abs(train(model, tiny_images, seed=3, index=rows) - expected).max() > 0.01


def test_numbers_of_images_count_from_0_by_default(tiny_model, tiny_images):
    step = nnx.jit(
        lambda model, x: model(x, train=True, rngs=nnx.Rngs(dropout=0), dropout_rate=0.5)
    )
    np.testing.assert_allclose(
        step(tiny_model, tiny_images), train(tiny_model, tiny_images), rtol=1e-4, atol=1e-5
    )


def test_survival_falls_linearly_from_1(tiny_model):
    for model in (tiny_model, abstract_model("efficientnetv2-s")):
        n = len(model.blocks)
        expected = [1 - (1 - 0.8) * i / n for i in range(n)]
        assert [block.survival_prob for block in model.blocks] == pytest.approx(expected)


@pytest.mark.parametrize("block", [MBConv, FusedMBConv])
def test_a_block_with_a_skip_drops_or_rescales_the_branch_of_each_image(block):
    whole = block(8, 8, rngs=nnx.Rngs(0))
    halved = block(8, 8, survival_prob=0.5, rngs=nnx.Rngs(0))
    x = noise(32, 4, 4, 8)
    call = nnx.jit(lambda block, x: block(x, train=True, rngs=nnx.Rngs(dropout=7)))
    branch, y = np.asarray(call(whole, x) - x), np.asarray(call(halved, x) - x)
    kept = np.abs(y).max((1, 2, 3)) > 0
    assert 0 < kept.sum() < 32
    np.testing.assert_allclose(y[kept], 2 * branch[kept], atol=1e-5)


@pytest.mark.parametrize(
    ("block", "filters", "stride"), [(MBConv, 8, 2), (MBConv, 16, 1), (FusedMBConv, 8, 2)]
)
def test_a_block_without_a_skip_is_never_dropped(block, filters, stride):
    module = block(8, filters, stride=stride, survival_prob=0.01, rngs=nnx.Rngs(0))
    x = noise(16, 4, 4, 8)
    # It needs no rngs.
    y = nnx.jit(lambda block, x: block(x, train=True))(module, x)
    assert (np.abs(y).max((1, 2, 3)) > 0).all()


def test_dropout_rescales_and_at_rate_0_is_the_identity():
    x = jnp.arange(1.0, 40001.0).reshape(200, 200)
    np.testing.assert_array_equal(dropout(x, 0.0, jax.random.key(0)), x)
    y = np.asarray(dropout(x, 0.25, jax.random.key(0)) / x)
    np.testing.assert_allclose(np.unique(y.round(5)), [0.0, 1.33333], atol=1e-5)
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.01)


def test_one_program_serves_every_dropout_rate(tiny_model, tiny_images):
    nothing = train(tiny_model, tiny_images, rate=0.0)
    before = len(traces)
    half, most = (train(tiny_model, tiny_images, rate=rate) for rate in (0.5, 0.9))
    assert len(traces) == before
    assert not np.allclose(nothing, half)
    assert not np.allclose(half, most)


def test_only_the_dropout_key_makes_training_random(tiny_model, tiny_images):
    # Training uses the batch's statistics, so that a change of the moving ones does not matter.
    first, again, other = (train(tiny_model, tiny_images, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_without_dropout_and_stochastic_depth_training_is_not_random(tiny_spec, tiny_images):
    spec = dataclasses.replace(tiny_spec, survival_prob=1.0)
    model = EfficientNet(spec, num_classes=10, rngs=nnx.Rngs(0))
    first, second = (train(model, tiny_images, seed=seed, rate=0.0) for seed in (0, 1))
    np.testing.assert_array_equal(first, second)


def test_the_models_own_dropout_key_advances(tiny_model, tiny_images):
    first, second = (forward_by_mode[True](tiny_model, tiny_images) for _ in range(2))
    assert not np.array_equal(first, second)


# Modes.


def changes_statistics(model: EfficientNet, x: jax.Array, train: bool | None = None) -> bool:
    before = arrays(model, nnx.BatchStat)
    parameters = arrays(model, nnx.Param)
    (forward if train is None else forward_by_mode[train])(model, x)
    for path, value in arrays(model, nnx.Param).items():
        np.testing.assert_array_equal(value, parameters[path])
    changed = [
        not np.array_equal(value, before[path])
        for path, value in arrays(model, nnx.BatchStat).items()
    ]
    # All of them or none.
    assert len(set(changed)) == 1
    return changed[0]


def test_a_new_model_is_in_evaluation_mode(tiny_model, tiny_images):
    assert not changes_statistics(tiny_model, tiny_images)
    np.testing.assert_array_equal(
        forward(tiny_model, tiny_images), forward(tiny_model, tiny_images)
    )


def test_train_and_eval_switch_the_mode(tiny_model, tiny_images):
    tiny_model.train()
    assert changes_statistics(tiny_model, tiny_images)
    tiny_model.eval()
    assert not changes_statistics(tiny_model, tiny_images)


def test_the_train_argument_overrides_the_mode(tiny_model, tiny_images):
    assert changes_statistics(tiny_model, tiny_images, train=True)
    tiny_model.train()
    assert not changes_statistics(tiny_model, tiny_images, train=False)


def test_evaluation_of_an_image_does_not_depend_on_the_batch(tiny_model, tiny_images):
    alone = forward(tiny_model, tiny_images[:1])
    np.testing.assert_allclose(alone, forward(tiny_model, tiny_images)[:1], atol=1e-5)


def test_features_know_the_modes_too(tiny_model, tiny_images):
    before = arrays(tiny_model.stem, nnx.BatchStat)
    features(tiny_model, tiny_images)
    for path, value in arrays(tiny_model.stem, nnx.BatchStat).items():
        np.testing.assert_array_equal(value, before[path])
    nnx.jit(lambda model, x: model.features(x, train=True))(tiny_model, tiny_images)
    for path, value in arrays(tiny_model.stem, nnx.BatchStat).items():
        assert not np.array_equal(value, before[path])


def test_features_are_the_last_blocks_at_each_scale(tiny_model, tiny_images):
    found = features(tiny_model, tiny_images)
    shapes = {name: value.shape for name, value in found.items()}
    assert shapes == {
        "reduction_1": (8, 8, 8, 8),
        "reduction_2": (8, 4, 4, 16),
        "reduction_3": (8, 2, 2, 24),
    }
    head = nnx.jit(lambda model, x: model.classifier(model.head(x).array.mean((1, 2))))
    np.testing.assert_allclose(
        head(tiny_model, found["reduction_3"]), forward(tiny_model, tiny_images), atol=1e-5
    )


# Errors and names.


def test_an_unknown_model_is_answered_with_the_near_names():
    with pytest.raises(UsageError, match=r"'efficientnetv2s'.*did you mean.*efficientnetv2-s"):
        create_model("efficientnetv2s")
    with pytest.raises(UsageError, match="efficientnetv2-s"):
        model_info("efficientnetv2s")


def test_an_unknown_override_is_answered_with_the_near_fields():
    with pytest.raises(UsageError, match=r"did you mean.*survival_prob"):
        create_model("efficientnetv2-b0", survival_probability=1.0)
    with pytest.raises(UsageError, match=r"argument of create_model.* did you mean num_classes"):
        create_model("efficientnetv2-b0", num_class=10)


@pytest.mark.parametrize("name", ["efficientnetv2-tiny", "deit-ti"])
def test_an_abstract_model_has_the_shapes_and_the_place_of_everything(name):
    graphs, shapes = zip(
        nnx.split(abstract_model(name, num_classes=7)),
        nnx.split(nnx.eval_shape(lambda: create_model(name, num_classes=7))),
        strict=True,
    )
    assert graphs[0] == graphs[1]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes[0]) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes[1]
    )


def test_overrides_reach_the_model():
    model = abstract_model(
        "efficientnetv2-b0", bn_momentum=0.9, survival_prob=1.0, dropout_rate=0.0
    )
    assert model.stem.norm.momentum == model.blocks[-1].project.norm.momentum == 0.9
    assert {block.survival_prob for block in model.blocks} == {1.0}
    assert model.spec.dropout_rate == 0.0


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("num_classes", -1), ("num_classes", 2.5), ("num_classes", "ten")),
        *(("dtype", "float31"), ("dtype", jnp.int32)),
        *(("survival_prob", 5), ("dropout_rate", -1.0), ("bn_momentum", math.nan)),
        *(("bn_epsilon", "a"), ("eval_size", -3), ("head_filters", 0)),
    ],
)
def test_an_argument_that_is_not_allowed_is_refused(argument, value):
    with pytest.raises(UsageError, match=f"{argument} must be .*, got {re.escape(repr(value))}"):
        create_model("efficientnetv2-b0", **{argument: value})


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((16, 16, 3), jnp.float32, r"\[16, 16, 3\]"),
        ((2, 16, 16, 4), jnp.float32, r"\[2, 16, 16, 4\]"),
        ((2, 16, 16, 3), jnp.uint8, "uint8"),
    ],
)
def test_images_of_a_wrong_shape_or_dtype_are_refused(tiny_model, shape, dtype, message):
    images = jnp.zeros(shape, dtype)
    with pytest.raises(UsageError, match=message):
        tiny_model(images)
    with pytest.raises(UsageError, match=message):
        tiny_model.features(images)


def test_numbers_for_another_batch_are_refused(tiny_model, tiny_images):
    with pytest.raises(UsageError, match=r"index must have the batch's shape \[8\], got \[4\]"):
        tiny_model(tiny_images, index=jnp.arange(4))


def test_an_image_size_of_0_is_refused():
    with pytest.raises(UsageError, match=r"image_size.*0"):
        model_info("efficientnetv2-b0", image_size=0)


def test_a_skipping_block_in_training_asks_for_rngs():
    block = MBConv(8, 8, survival_prob=0.5, rngs=nnx.Rngs(0))
    with pytest.raises(UsageError, match="rngs"):
        nnx.eval_shape(lambda block, x: block(x, train=True), block, jnp.ones((1, 4, 4, 8)))


def test_list_models_takes_shell_patterns():
    assert list_models("efficientnetv2-?") == [f"efficientnetv2-{size}" for size in "lms"]
    assert list_models("*lite*") == [f"efficientnet-lite{i}" for i in range(5)]
    assert list_models("*-fused-1-[35]") == [f"efficientnet-b4-fused-1-{i}" for i in (3, 5)]
    assert list_models("resnet*") == []


def test_a_group_of_another_spec_is_built_as_it_says():
    """The network depends only on its spec, not on the published tables."""
    group = GroupSpec("mbconv", 2, 5, 2, 3, 12, 0.5)
    spec = EfficientNetSpec("other", (group,), 4, 16, 8, 8, 0.0, "v1", activation="relu6")
    model = nnx.eval_shape(lambda: EfficientNet(spec, num_classes=7, rngs=nnx.Rngs(0)))
    first, second = model.blocks
    assert first.depthwise.conv.kernel.shape == (5, 5, 1, 12)
    assert (first.depthwise.conv.stride, second.depthwise.conv.stride) == (2, 1)
    assert first.se.reduce.kernel.shape == (1, 1, 12, 2)
    assert second.se.reduce.kernel.shape == (1, 1, 36, 6)
    assert second.depthwise.activation == second.se.activation == "relu6"


# Starting up.


def run_fresh(program: str) -> str:
    """Runs Python code in a new process, which has imported and compiled nothing."""
    drop = ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if k not in drop}
    root = pathlib.Path(effnetv2_jax.__file__).resolve().parents[1]
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_imports_no_data_libraries_and_touches_no_device():
    out = run_fresh(
        "import sys, effnetv2_jax\n"
        "from jax._src import xla_bridge\n"
        "names = ('tensorflow', 'tensorflow_datasets', 'clu', 'orbax')\n"
        "print([name for name in names if name in sys.modules], list(xla_bridge._backends))\n"
    )
    assert out.split("\n")[0] == "[] []"


def test_creating_v2_s_is_quick():
    # The README says 5 s, measured on an idle machine. A loaded one may take longer.
    out = run_fresh(
        "import time, jax, effnetv2_jax\n"
        "start = time.perf_counter()\n"
        "jax.block_until_ready(effnetv2_jax.create_model('efficientnetv2-s'))\n"
        "print(time.perf_counter() - start)\n"
    )
    assert float(out) < 15


def test_an_unknown_model_names_the_near_ones_and_what_lists_all():
    with pytest.raises(UsageError) as caught:
        create_model("efficientnet_b0")
    message = str(caught.value)
    assert message.startswith("unknown model 'efficientnet_b0': did you mean efficientnet-b0 or")
    assert "list_models()" in message and len(message) < 200
