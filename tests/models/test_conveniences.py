"""timm's further arguments against timm: channels, output stride, feature maps, poolings, heads.

timm's results are in ``conveniences.npz``, which ``tests/golden/make_conveniences.py`` wrote.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effnetv2_jax.models import (
    EfficientNetSpec,
    GroupSpec,
    VisionTransformerSpec,
    create_model,
    fold_batch_norm,
    get_spec,
    registry,
)
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import Weights, load_model, load_weights, save_weights
from effnetv2_jax.weights.dialects.dialect import get_dialect
from effnetv2_jax.weights.load import adapt_channels, put
from tests.golden import make_conveniences as timm
from tests.golden.drawn import draw, image

# timm's ``BLOCKS`` in our words.
GROUPS = (
    GroupSpec("fused", 1, 3, 1, 1, 8, 0.0),
    GroupSpec("fused", 2, 3, 2, 4, 16, 0.0),
    GroupSpec("mbconv", 1, 5, 2, 4, 16, 0.25),
    GroupSpec("fused", 2, 3, 2, 2, 24, 0.0),
    GroupSpec("mbconv", 3, 5, 2, 2, 32, 0.25),
)
SPEC = EfficientNetSpec("small", GROUPS, timm.STEM, timm.HEAD, 56, 56, 0.0, "v2")
VIT = VisionTransformerSpec("small-vit", 8, 24, 3, 3, 32, "vit")


@pytest.fixture(scope="module")
def golden():
    with np.load(timm.PATH) as arrays:
        return dict(arrays)


def drawn(spec, **arguments):
    """Returns a network with the weights that timm's had."""
    num_classes = 0 if spec.pooling == "none" else timm.NUM_CLASSES
    places = get_dialect(registry.family_of(spec), "timm").places(spec, num_classes)
    tensors = {name: x.to_ours(draw(x.name, x.shape)) for name, x in places.items()}
    model = registry.build(spec, num_classes=num_classes, rngs=nnx.Rngs(0), **arguments)
    put(Weights(spec, num_classes, tensors, None, "drawn"), model)
    return model


def close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


both = nnx.jit(lambda model, x: (model(x), model.features(x)))


@pytest.mark.parametrize(("padding", "stride"), timm.CASES)
def test_dilation_is_timms(golden, padding, stride):
    epsilon = timm.PADDINGS[padding][1]
    spec = dataclasses.replace(SPEC, output_stride=stride, padding=padding, bn_epsilon=epsilon)
    model = drawn(spec)
    logits, maps = both(model, image(*timm.SIZE))
    close(logits, golden[f"{padding}/{stride}/logits"])
    for level in timm.LEVELS:
        close(maps[f"reduction_{level}"], golden[f"{padding}/{stride}/{level}"])
    if padding == "same" and stride == 8:
        folded, _ = both(fold_batch_norm(model), image(*timm.SIZE))
        close(folded, logits)


def test_dilation_is_the_same_on_accelerators_in_loops_and_backwards(as_if_on):
    """The gradients are compared between the form for CPU and the one that XLA derives."""
    spec = dataclasses.replace(SPEC, output_stride=8)
    x = jnp.asarray(image(*timm.SIZE))

    def logits_and_gradients(model):
        def loss(params, x):
            return jnp.sin(nnx.merge(graph, params, rest)(x)).sum()

        graph, params, rest = nnx.split(model, nnx.Param, ...)
        value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)
        return [value, *jax.tree.leaves(gradients)]

    found = [logits_and_gradients(drawn(spec, scan_blocks=True, remat="blocks"))]
    as_if_on("tpu")
    found.append(logits_and_gradients(drawn(spec)))
    for ours, expected in zip(*found, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4 * max(1, np.abs(expected).max()))


def by_pooling(spec, names, x):
    """Returns a network's logits with each pooling, and its features without."""

    @nnx.jit
    def call(model, x):
        found = {}
        classifier = model.classifier
        for name in names:
            model.spec = dataclasses.replace(spec, pooling=name)
            model.classifier = None if name == "none" else classifier
            found[name] = model(x)
        model.spec, model.classifier = dataclasses.replace(spec, pooling="none"), classifier
        return found, model(x)

    return call(drawn(spec), x)


def test_poolings_are_timms(golden):
    found, pixels = by_pooling(SPEC, [*timm.POOLINGS, "avg"], image(*timm.SIZE))
    for name in timm.POOLINGS:
        close(found[name], golden[f"pooling/{name}"])
    # timm refuses this: each pixel is classified, and a classifier is linear.
    assert pixels.shape == (1, 2, 2, timm.NUM_CLASSES)
    close(pixels.mean((1, 2)), found["avg"])


def test_a_vit_is_timms(golden):
    found, _ = by_pooling(VIT, timm.VIT_POOLINGS, image(32, 32))
    for name in timm.VIT_POOLINGS:
        close(found[name], golden[f"vit/{name}"])
    model = drawn(VIT)
    maps = nnx.jit(lambda model, x: model.features(x))(model, image(32, 32))
    assert list(maps) == ["block_1", "block_2", "block_3"]
    for level in (1, 2, 3):
        close(maps[f"block_{level}"], golden[f"vit/{level}"])
    assert [x.reduction for x in model.feature_info] == [8, 8, 8]


def test_the_facts_about_features_are_timms(golden):
    for line in golden["feature_info"]:
        name, stride, expected = str(line).split(" ", 2)
        name = name.removeprefix("tf_").replace("_", "-")
        model = registry.abstract_model(name, output_stride=int(stride))
        found = [f"{x.channels}/{x.reduction}" for x in model.feature_info]
        assert " ".join(found) == expected, line


def test_levels_are_chosen_and_nothing_else_is_computed():
    model = drawn(SPEC)
    x = jnp.asarray(image(*timm.SIZE))
    maps = jax.eval_shape(lambda x: model.features(x, levels=(4, 2)), x)
    assert set(maps) == {"reduction_4", "reduction_2"}
    for level in (1, 3):
        info = model.feature_info[level - 1]
        (found,) = jax.eval_shape(lambda x, n=level: model.features(x, levels=[n]), x).values()
        assert found.shape == (
            1,
            *(-(-side // info.reduction) for side in timm.SIZE),
            info.channels,
        )
    model.blocks = model.blocks[:3]
    model.features(x, levels=(1, 2))
    for levels in ((), (0,), (6,)):
        with pytest.raises(UsageError, match=r"levels must be some of 1 … 5, got \["):
            model.features(x, levels=levels)


def test_a_new_classifier_takes_the_place_of_the_old():
    model = drawn(SPEC, dtype=jnp.bfloat16)
    x = jnp.asarray(image(*timm.SIZE))
    for num_classes, pooling in ((3, None), (0, None), (5, "max")):
        model.reset_classifier(num_classes, pooling=pooling)
        shape = (1, num_classes or timm.HEAD)
        assert nnx.eval_shape(lambda m, x: m(x), model, x).shape == shape
        fresh = registry.build(model.spec, num_classes=num_classes, rngs=nnx.Rngs(0))
        pairs = [nnx.state(m, nnx.Param) for m in (model, fresh)]
        shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), pair) for pair in pairs]
        assert shapes[0] == shapes[1]
    assert model.spec.pooling == "max" and model.classifier.dtype == jnp.bfloat16
    vit = registry.build(VIT, num_classes=3, rngs=nnx.Rngs(0))
    vit.reset_classifier(2, pooling="avg")
    assert nnx.eval_shape(lambda m, x: m(x), vit, jnp.zeros((1, 32, 32, 3))).shape == (1, 2)
    with pytest.raises(UsageError, match="unknown pooling 'nine': did you mean none"):
        model.reset_classifier(4, pooling="nine")


@pytest.mark.parametrize("channels", timm.CHANNELS)
def test_kernels_are_adapted_as_timms(golden, channels):
    kernel = draw("conv_stem.weight", (4, 3, 3, 3)).transpose(2, 3, 1, 0)
    expected = golden[f"kernel/{channels}"]
    np.testing.assert_allclose(adapt_channels(kernel, channels), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "fields", "naming"),
    [
        ("efficientnetv2-tiny", {}, "effnetv2_jax"),
        ("efficientnetv2-b0", {}, "timm"),
        ("deit-ti", {"eval_size": 32}, "effnetv2_jax"),
    ],
)
def test_weights_go_into_a_model_for_other_channels(tmp_path, name, fields, naming):
    rgb = create_model(name, num_classes=3, **fields)
    path = tmp_path / "rgb.safetensors"
    save_weights(rgb, path, naming=naming)
    how = {} if naming == "effnetv2_jax" else {"preprocessing": "torch"}
    grey = create_model(name, num_classes=3, in_channels=1, **fields)
    loaded = load_weights(grey, str(path), **how)
    assert grey.spec.in_channels == 1 and "adapted from 3 to 1 channels" in str(loaded)
    x = np.random.default_rng(0).normal(size=(1, 32, 32, 1)).astype(np.float32)

    def seen(model, x):
        """Returns logits, or of larger networks what the first kernel makes of images."""
        if name == "efficientnetv2-tiny":
            return jax.jit(lambda x: model(x))(x)
        return (model.embed.patches if name == "deit-ti" else model.stem.conv)(jnp.asarray(x))

    close(seen(grey, x), seen(rgb, np.repeat(x, 3, -1)))
    with pytest.raises(UsageError, match=r"it is for images of 3 channels, the model for 1$"):
        load_weights(grey, str(path), strict=True, **how)
    # And back out again: the weights say how many channels their images have.
    save_weights(grey, tmp_path / "grey.safetensors", naming=naming)
    again, _ = load_model(str(tmp_path / "grey.safetensors"), **how)
    assert again.spec.in_channels == 1
    np.testing.assert_array_equal(seen(again, x), seen(grey, x))
    with pytest.raises(UsageError, match="only weights for 3 channels can be adapted"):
        load_weights(rgb, str(tmp_path / "grey.safetensors"), **how)


def test_a_model_for_saved_weights_is_as_it_was_saved(tmp_path):
    chosen = {"pooling": "max", "output_stride": 16}
    model = create_model("efficientnetv2-tiny", num_classes=3, **chosen)
    save_weights(model, tmp_path / "tiny.safetensors")
    again, _ = load_model(str(tmp_path / "tiny.safetensors"))
    assert again.spec == model.spec
    plain = create_model("efficientnetv2-tiny", num_classes=3)
    load_weights(plain, str(tmp_path / "tiny.safetensors"), strict=True)
    assert plain.spec == get_spec("efficientnetv2-tiny")


def test_drop_path_is_timms_word_for_stochastic_depth():
    model = registry.abstract_model("efficientnetv2-tiny", drop_path_rate=0.25)
    assert model.spec.survival_prob == 0.75
    assert [x.survival_prob for x in model.blocks] == [1 - 0.25 * i / 4 for i in range(4)]
    vit = registry.abstract_model("deit-ti", drop_path_rate=0.1)
    np.testing.assert_allclose([1 - x.survival_prob for x in vit.blocks], np.linspace(0, 0.1, 12))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("efficientnetv2-b0", {"output_stride": 4}, "must be one of 8, 16, 32, got 4"),
        ("deit-ti", {"output_stride": 8}, "output_stride is an argument for EfficientNets, but de"),
        ("efficientnetv2-b0", {"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ("efficientnetv2-b0", {"pooling": "token"}, "unknown pooling 'token'"),
        ("deit-ti", {"pooling": "means"}, "unknown pooling 'means'"),
        ("deit-ti", {"drop_path_rate": 1}, r"drop_path_rate must be in \[0, 1\), got 1"),
        ("deit-ti", {"drop_path_rate": 0, "survival_prob": 1}, "give one of them, not both"),
    ],
)  # fmt: skip
def test_what_cannot_be_built(name, arguments, message):
    with pytest.raises(UsageError, match=message):
        registry.abstract_model(name, **arguments)


def test_images_of_other_channels_are_refused():
    model = drawn(SPEC)
    with pytest.raises(UsageError, match=r"shape \[batch, height, width, 3\], got \[1, 8, 8, 1\]"):
        model.features(jnp.zeros((1, 8, 8, 1)))
