"""The programs in ``examples/``, in one process and on the tiny network."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from effnetv2_jax import create_model, save_weights

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "examples"
TINY = {"name": "efficientnetv2-tiny", "size": 32}


def example(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_is_run_here(path):
    assert len(path.read_text().splitlines()) < 80
    assert f'example("{path.stem}")' in pathlib.Path(__file__).read_text()


def test_fine_tuning_learns_other_classes(tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_weights(create_model("efficientnetv2-tiny", num_classes=10), weights)
    assert example("finetune").main(str(weights), **TINY, steps=15) > 0.6


def test_a_head_on_features_finds_discs():
    assert example("segment").main(**TINY, steps=30) > 0.6


def test_the_network_is_a_part_of_a_linen_module():
    losses = example("linen_module").main(**TINY)
    assert losses[-1] < losses[0]


def test_the_network_is_a_model_of_big_vision(tmp_path):
    file, images = example("big_vision_model"), np.ones((2, 32, 32, 3), np.float32)
    model = file.Model(3, variant="efficientnetv2-tiny")
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    other = create_model("efficientnetv2-tiny", num_classes=3)
    save_weights(other, tmp_path / "other.safetensors")
    loaded = file.load(
        params, str(tmp_path / "other.safetensors"), {"variant": "efficientnetv2-tiny"}
    )

    @jax.jit
    def logits_and_gradient(params):
        def value(params):
            logits, out = model.apply({"params": params}, images)
            return logits.sum(), (logits, out)

        (_, (logits, out)), gradient = jax.value_and_grad(value, has_aux=True)(params)
        return logits, out, gradient

    logits, out, gradient = logits_and_gradient(loaded)
    np.testing.assert_allclose(logits, jax.jit(lambda x: other(x))(images), atol=1e-6)
    assert {"logits", "reduction_3"} <= out.keys()
    stem = gradient["network"]["stem"]
    assert not np.any(stem["norm"]["mean"]) and np.any(stem["conv"]["kernel"])


def test_eight_devices_train_together():
    losses = example("data_parallel").main(**TINY, steps=6)
    assert jax.device_count() == 8 and losses[-1] < losses[0]


def test_an_ensemble_predicts():
    np.testing.assert_allclose(example("ensemble").main(**TINY).sum(-1), 1, rtol=1e-5)
