"""Counts, patches, modes, randomness and errors of Vision Transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from effnetv2_jax.models import (
    VisionTransformer,
    VisionTransformerSpec,
    abstract_model,
    create_model,
    list_models,
    model_info,
)
from effnetv2_jax.models.family import REMAT
from effnetv2_jax.models.vit import Patches
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime.errors import UsageError

# Counted in timm 1.0.31: parameters, and 10⁹ multiply-adds by PyTorch's counter, with attention as
# matrix products.
TIMM = {
    "vit-b-32": (88297192, 13.043564544),
    "vit-b-16": (86859496, 55.484350464),
    "vit-l-16": (304715752, 191.066300416),
    "deit-ti": (5717416, 1.2536832),
    "deit-s": (22050664, 4.598882304),
    "deit-b": (86567656, 17.563828224),
    "deit-b-384": (86859496, 55.484350464),
}
# Table 7 of the paper: 10⁶ parameters, 10⁹ FLOPs.
PAPER = {
    "vit-b-32": (88, 13),
    "vit-b-16": (87, 56),
    "deit-b": (86, 18),
    "deit-b-384": (86, 56),
    "vit-l-16": (304, 192),
}

TINY = VisionTransformerSpec("tiny", 4, 24, 3, 2, 16, "vit", survival_prob=0.5)

forward = nnx.jit(lambda model, x: model(x))


@nnx.jit
def train(model, x, key, rate=0.0, index=None):
    return model(x, train=True, rngs=nnx.Rngs(dropout=key), dropout_rate=rate, index=index)


def make(spec=TINY, **keywords):
    keywords = {"num_classes": 10, "rngs": nnx.Rngs(0), **keywords}
    return VisionTransformer(spec, **keywords)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(1).normal(size=(8, 16, 16, 3)), jnp.float32)


@pytest.mark.parametrize("name", TIMM)
def test_counts_are_timms_to_the_last(name):
    parameters, billions = TIMM[name]
    info = model_info(name)
    assert info.parameters == parameters
    assert info.multiply_adds == round(billions * 1e9)


@pytest.mark.parametrize("name", PAPER)
def test_counts_are_the_papers(name):
    millions, billions = PAPER[name]
    info = model_info(name)
    assert info.parameters / 1e6 == pytest.approx(millions, rel=0.01)
    assert info.multiply_adds / 1e9 == pytest.approx(billions, rel=0.03)


def test_every_listed_vit_is_counted_and_has_a_preprocessing():
    assert {*list_models("vit*"), *list_models("deit*")} == TIMM.keys()
    for name in TIMM:
        info = model_info(name)
        assert info.train_size == info.eval_size == info.image_size
        assert get_preprocessing(info.preprocessing).interpolation == "bicubic"


def test_another_image_size_is_another_position_embedding():
    # As timm counts vit_base_patch16_224.
    info = model_info("vit-b-16", image_size=224)
    assert info.parameters == 86567656
    assert info.eval_size == 384
    model = abstract_model("vit-b-16", eval_size=224)
    assert model.embed.positions.shape == (1, 1 + 14 * 14, 768)


def test_patches_are_a_convolution(images):
    patches = Patches(4, 24, rngs=nnx.Rngs(0))
    patches.bias[...] = jnp.arange(24.0)
    expected = lax.conv_general_dilated(
        images, patches.kernel[...], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = expected.reshape(8, 16, 24) + jnp.arange(24.0)
    np.testing.assert_allclose(patches(images), expected, atol=1e-5)


def test_without_a_classifier_it_gives_the_class_token(images):
    model = make()
    features = forward(make(num_classes=0), images)
    assert features.shape == (8, 24)
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(model.classifier(features), forward(model, images), atol=1e-5)


def test_bfloat16_computes_nearly_the_same(images):
    expected = forward(make(), images)
    half = make(dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(nnx.state(half, nnx.Param))} == {jnp.float32.dtype}
    tokens = half.embed(images)
    assert tokens.dtype == half.blocks[0].attention(tokens).dtype == jnp.bfloat16
    assert half.blocks[0].mlp(half.norm(tokens)).dtype == jnp.bfloat16
    logits = forward(half, images)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=0.03 * float(np.abs(expected).max()))
    assert not np.array_equal(logits, expected)


def test_every_parameter_takes_part(images):
    def loss(model):
        return jnp.square(model(images)).sum()

    gradients = nnx.jit(nnx.grad(loss))(make())
    for path, gradient in nnx.to_flat_state(gradients):
        assert np.abs(gradient[...]).max() > 1e-7, path


def test_it_has_no_batch_statistics(images):
    assert not jax.tree.leaves(nnx.state(make(), nnx.BatchStat))


def test_modes(images):
    model = make()
    evaluated = forward(model, images)
    np.testing.assert_array_equal(forward(model, images), evaluated)
    model.train()
    # The model's own key advances.
    first, second = forward(model, images), forward(model, images)
    assert not np.array_equal(first, second)
    off = nnx.jit(lambda model, x: model(x, train=False))
    np.testing.assert_allclose(off(model, images), evaluated, atol=1e-6)
    model.eval()
    np.testing.assert_array_equal(forward(model, images), evaluated)


def test_training_is_random_by_the_key_alone(images):
    model = make(dataclasses.replace(TINY, survival_prob=1.0))
    keys = [jax.random.key(i) for i in range(2)]
    np.testing.assert_array_equal(*(train(model, images, key) for key in keys))
    np.testing.assert_allclose(train(model, images, keys[0]), forward(model, images), atol=1e-6)
    a, b = (train(model, images, key, 0.5) for key in keys)
    assert not np.array_equal(a, b)
    np.testing.assert_array_equal(train(model, images, keys[0], 0.5), a)


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_an_image_has_the_same_fate_wherever_it_lies(images, remat):
    model = make(remat=remat)
    rows = np.array([3, 1, 7, 5, 0, 2, 6, 4])
    expected = np.asarray(train(model, images, jax.random.key(3), 0.5))
    moved = train(model, images[rows], jax.random.key(3), 0.5, jnp.asarray(rows))
    np.testing.assert_allclose(moved, expected[rows], atol=1e-5)
    other = train(model, images, jax.random.key(3), 0.5, jnp.asarray(rows))
    assert np.abs(other - expected).max() > 0.01


def test_each_branch_of_a_block_is_dropped_on_its_own(images):
    """With survival ½, a quarter of the images each keep nothing, one of the branches, or both."""
    spec = dataclasses.replace(TINY, depth=2)
    block = make(spec).blocks[1]
    assert block.survival_prob == 0.5
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 5, 24)), jnp.float32)

    @nnx.jit
    def outcomes(block, x):
        y = block(x, train=True, rngs=nnx.Rngs(dropout=1))
        attended = x + 2 * block.attention(block.attention_norm(x))
        both = attended + 2 * block.mlp(block.mlp_norm(attended))
        mlp = x + 2 * block.mlp(block.mlp_norm(x))
        return jnp.stack([jnp.abs(y - z).max((1, 2)) < 1e-5 for z in (x, attended, mlp, both)])

    found = np.asarray(outcomes(block, x))
    assert (found.sum(0) == 1).all()
    assert (found.sum(1) > 4).all()


def test_survival_falls_linearly_to_the_last_block():
    model = abstract_model("deit-b")
    expected = np.linspace(1, 0.9, 12)
    np.testing.assert_allclose([block.survival_prob for block in model.blocks], expected)


def test_remat_computes_the_same(images):
    def program_of(remat):
        graphdef, state = nnx.split(make(remat=remat))

        def loss(state):
            logits = nnx.merge(graphdef, state)(images, train=True, rngs=nnx.Rngs(dropout=5))
            return jnp.square(logits).sum()

        traced = jax.jit(jax.grad(loss, allow_int=True)).trace(state)
        return str(traced.jaxpr), traced, state

    def gradients(traced, state):
        found = nnx.filter_state(traced.lower().compile()(state), nnx.Param)
        return {path: np.asarray(x[...]) for path, x in nnx.to_flat_state(found)}

    (plain, *expected), (blocks, *found), (stages, *_) = map(program_of, REMAT)
    assert "remat" not in plain
    assert "remat" in blocks
    assert stages == blocks
    found, expected = gradients(*found), gradients(*expected)
    for path, gradient in expected.items():
        np.testing.assert_allclose(found[path], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 20), (12, 16)])
def test_images_of_another_size_are_refused_with_both_sizes(height, width):
    with pytest.raises(UsageError, match=rf"16 × 16 px, .* got {height} × {width}"):
        make()(jnp.zeros((1, height, width, 3)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eval_size": 18}, r"eval_size of tiny must be a multiple of .* 4 px, got 18"),
        ({"eval_size": 0}, r"eval_size of tiny .* got 0"),
        ({"num_heads": 5}, r"num_heads of tiny must divide its width 24, got 5"),
    ],
)
def test_a_spec_that_cannot_be_built_is_named(fields, message):
    with pytest.raises(UsageError, match=message):
        make(dataclasses.replace(TINY, **fields))


def test_arguments_that_cannot_be_used_are_named():
    with pytest.raises(UsageError, match=r"num_classes.*-1"):
        make(num_classes=-1)
    with pytest.raises(UsageError, match="unknown remat 'block': did you mean blocks"):
        make(remat="block")
    with pytest.raises(UsageError, match=r"index must have the batch's shape \[2\], got \[4\]"):
        make()(jnp.zeros((2, 16, 16, 3)), index=jnp.arange(4))
    with pytest.raises(UsageError, match="uint8"):
        make()(jnp.zeros((2, 16, 16, 3), jnp.uint8))
    with pytest.raises(UsageError, match="bn_momentum is an argument for EfficientNets, but deit-"):
        create_model("deit-ti", bn_momentum=0.9)


def test_arguments_of_batch_norm_are_ignored():
    model = abstract_model("deit-ti", axis_name=("data", "fsdp"), bn_group_size=8)
    assert nnx.graphdef(model) == nnx.graphdef(abstract_model("deit-ti"))
