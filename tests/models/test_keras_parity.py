"""The networks compute the same as ``keras.applications`` with the same random weights.

Others ported Keras's EfficientNets from the official code. An error in a block, in padding or in
batch norm would be missed here only if both implementations had it.
"""

import itertools
import os
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effnetv2_jax.models import EfficientNet, create_model

# Keras warns at every call of a model that was made with its own input tensor.
pytestmark = pytest.mark.filterwarnings("ignore:The structure of `inputs`:UserWarning")

CLASSES = 10
# Measured differences are 1e-6 to 4e-6.
TOLERANCE = 2e-5

# Keras's layer names after the block's prefix → the same layer in MBConv or FusedMBConv.
BLOCK_LAYERS = {
    "expand_conv": ("expand", "conv"),
    "expand_bn": ("expand", "norm"),
    "dwconv": ("depthwise", "conv"),
    "dwconv2": ("depthwise", "conv"),
    "bn": ("depthwise", "norm"),
    "se_reduce": ("se", "reduce"),
    "se_expand": ("se", "expand"),
    "project_conv": ("project", "conv"),
    "project_bn": ("project", "norm"),
}
OTHER_LAYERS = {
    "stem_conv": ("stem", "conv"),
    "stem_bn": ("stem", "norm"),
    "top_conv": ("head", "conv"),
    "top_bn": ("head", "norm"),
    "predictions": ("classifier",),
}
BATCH_NORM_WEIGHTS = {
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
}


def import_keras():
    """Imports Keras only when it is needed, since TensorFlow would slow down every collection."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    return keras


def randomise(keras_model, seed: int) -> None:
    """Sets every weight to different numbers, so that exchanged tensors are noticed."""
    rng = np.random.default_rng(seed)
    adds = [layer.name for layer in keras_model.layers if layer.name.endswith("_add")]
    branch_ends = {name.removesuffix("add") + "project_conv" for name in adds}
    for weight in keras_model.weights:
        name, shape = weight.path.rsplit("/", 1)[1], tuple(weight.shape)
        if name == "kernel":
            depthwise = len(shape) == 4 and shape[3] == 1
            fan_in = np.prod(shape[:2] if depthwise else shape[:-1])
            # He-normal, with less variance at the end of a residual branch. Otherwise activations
            # would grow to thousands over 30 skips, and SE would make rounding errors 1e5 times
            # larger.
            layer_name = weight.path.rsplit("/", 1)[0]
            gain = 0.2 if layer_name in branch_ends else 2.0
            value = rng.normal(0.0, np.sqrt(gain / fan_in), shape)
        elif name == "gamma":
            value = rng.normal(1.0, 0.1, shape)
        elif name == "moving_variance":
            value = rng.uniform(0.5, 1.5, shape)
        else:
            assert name in ("beta", "moving_mean", "bias"), weight.path
            value = rng.normal(0.0, 0.1, shape)
        weight.assign(value.astype(np.float32))


def variables_from_keras(keras_model) -> dict[tuple, np.ndarray]:
    """Returns the weights of a Keras model by the paths of our variables."""
    names = {layer.name for layer in keras_model.layers if layer.weights}
    matches = {name: re.fullmatch(r"block(\d+)([a-z])_(.+)", name) for name in names}
    prefixes = sorted({(int(m[1]), m[2]) for m in matches.values() if m})
    index = {prefix: i for i, prefix in enumerate(prefixes)}
    variables = {}
    for layer in keras_model.layers:
        if not layer.weights:
            continue
        match = matches[layer.name]
        if match:
            block = index[int(match[1]), match[2]]
            layer_path = ("blocks", block, *BLOCK_LAYERS[match[3]])
        else:
            layer_path = OTHER_LAYERS[layer.name]
        for weight in layer.weights:
            name = weight.path.rsplit("/", 1)[1]
            value = np.asarray(weight)
            if "depthwise" in layer_path and name == "kernel":
                value = value.transpose(0, 1, 3, 2)
            path = (*layer_path, BATCH_NORM_WEIGHTS.get(name, name))
            assert path not in variables, f"set twice: {path}"
            variables[path] = value
    assert len(variables) == len(keras_model.weights)
    return variables


def variables_of(model: EfficientNet) -> dict[tuple, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {path: np.asarray(variable[...]) for path, variable in flat}


def load(model: EfficientNet, keras_model) -> EfficientNet:
    """Sets all variables of ``model``; fails unless both sides have the same ones and shapes."""
    variables = variables_from_keras(keras_model)
    ours = variables_of(model)
    assert variables.keys() == ours.keys()
    for path, value in variables.items():
        assert value.shape == ours[path].shape, path
    nnx.update(model, nnx.from_flat_state({p: jnp.asarray(v) for p, v in variables.items()}))
    return model


def relative_error(value, reference) -> float:
    value, reference = np.asarray(value), np.asarray(reference)
    assert value.shape == reference.shape
    assert np.isfinite(reference).all()
    return float(np.abs(value - reference).max() / np.abs(reference).max())


def images(batch: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * 1000 + width)
    return rng.normal(0.0, 1.0, (batch, height, width, 3)).astype(np.float32)


forward = nnx.jit(lambda model, x: model(x))


@pytest.fixture(scope="module")
def keras_v2_b0():
    keras = import_keras()
    model = keras.applications.EfficientNetV2B0(
        weights=None,
        # With a classifier, input_shape must be complete.
        input_tensor=keras.Input((None, None, 3)),
        classes=CLASSES,
        classifier_activation=None,
        include_preprocessing=False,
    )
    randomise(model, seed=0)
    for layer in model.layers:
        # This includes stochastic depth. Random results are not compared.
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    return model


@pytest.fixture(scope="module")
def v2_b0(keras_v2_b0):
    return load(create_model("efficientnetv2-b0", num_classes=CLASSES), keras_v2_b0)


def last_layers_before_strides(keras_model) -> list[str]:
    """Returns the names of the last layers at strides 2, 4, 8, 16 and 32.

    They are derived from Keras's convolutions, not from our spec.
    """
    outputs, strides = {}, {}
    for layer in keras_model.layers:
        match = re.match(r"block(\d+)([a-z])_", layer.name)
        if match:
            block = (int(match[1]), match[2])
            # Keras lists layers in the order of computation.
            outputs[block] = layer.name
            if getattr(layer, "strides", (1, 1)) == (2, 2):
                strides[block] = 2
    blocks = sorted(outputs)
    ends = [a for a, b in itertools.pairwise(blocks) if b in strides]
    return [outputs[block] for block in [*ends, blocks[-1]]]


both = nnx.jit(lambda model, x: (model(x), model.features(x)))


def test_v2_b0_logits_and_all_reductions_equal_keras(keras_v2_b0, v2_b0):
    """Maps have even and odd heights and widths, which TensorFlow pads in different ways."""
    x = images(2, 75, 53)
    names = last_layers_before_strides(keras_v2_b0)
    assert names[0] == "block1a_project_activation"
    assert names[1:] == ["block2b_add", "block3b_add", "block5e_add", "block6h_add"]
    keras = import_keras()
    outputs = [keras_v2_b0.output, *(keras_v2_b0.get_layer(name).output for name in names)]
    expected, *expected_features = keras.Model(keras_v2_b0.input, outputs)(x)

    logits, features = both(v2_b0, x)

    assert np.std(expected) > 0.1
    assert relative_error(logits, expected) < TOLERANCE
    assert sorted(features) == [f"reduction_{i}" for i in range(1, 6)]
    for i, expected_feature in enumerate(expected_features, 1):
        assert relative_error(features[f"reduction_{i}"], expected_feature) < TOLERANCE, i


# Golden logits of V2-S and V1-B0 are compared in tests/weights.
@pytest.mark.slow
def test_v2_s_logits_equal_keras():
    keras = import_keras()
    keras_model = keras.applications.EfficientNetV2S(
        weights=None,
        input_shape=(96, 96, 3),
        classes=CLASSES,
        classifier_activation=None,
        include_preprocessing=False,
    )
    randomise(keras_model, seed=1)
    model = load(create_model("efficientnetv2-s", num_classes=CLASSES), keras_model)
    x = images(1, 96, 96)
    assert relative_error(forward(model, x), keras_model(x)) < TOLERANCE


@pytest.mark.slow
def test_v1_b0_logits_equal_keras():
    keras = import_keras()
    whole = keras.applications.EfficientNetB0(
        weights=None, input_shape=(64, 64, 3), classes=CLASSES, classifier_activation=None
    )
    # Keras's V1 begins with preprocessing. This model begins with the padding before the stem.
    keras_model = keras.Model(whole.get_layer("stem_conv_pad").input, whole.output)
    randomise(keras_model, seed=2)
    model = load(create_model("efficientnet-b0", num_classes=CLASSES), keras_model)
    x = images(2, 64, 64)
    assert relative_error(forward(model, x), keras_model(x)) < TOLERANCE


def test_v2_b0_training_mode_equals_keras(keras_v2_b0):
    """Compares logits from the batch's statistics, and moving statistics after one step."""
    norms = [layer for layer in keras_v2_b0.layers if hasattr(layer, "momentum")]
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9, 1e-3)}
    model = create_model(
        "efficientnetv2-b0",
        num_classes=CLASSES,
        bn_momentum=0.9,
        survival_prob=1.0,
        dropout_rate=0.0,
    )
    load(model, keras_v2_b0)
    before = variables_of(model)
    # At least sixteen numbers for each channel, at stride 32.
    x = images(4, 64, 64)

    saved = keras_v2_b0.get_weights()
    try:
        expected = keras_v2_b0(x, training=True)
        expected_after = variables_from_keras(keras_v2_b0)
    finally:
        keras_v2_b0.set_weights(saved)
    logits = nnx.jit(lambda model, x: model(x, train=True))(model, x)

    assert relative_error(logits, expected) < 1e-3
    after = variables_of(model)
    assert after.keys() == expected_after.keys()
    for path, value in expected_after.items():
        if path[-1] in ("mean", "var"):
            assert not np.array_equal(after[path], before[path]), path
            assert relative_error(after[path], value) < 1e-3, path
        else:
            np.testing.assert_array_equal(after[path], before[path])


def test_the_comparison_notices_two_exchanged_tensors(v2_b0):
    """The tolerance is small enough to notice exchanged statistics in two equal blocks."""
    model = nnx.clone(v2_b0)
    first, second = model.blocks[-1].expand.norm, model.blocks[-2].expand.norm
    first.mean, second.mean = second.mean, first.mean
    x = images(2, 75, 53)
    assert relative_error(both(model, x)[0], both(v2_b0, x)[0]) > 1e-2
