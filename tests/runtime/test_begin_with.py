"""Training that begins with somebody's weights."""

import jax
import ml_collections
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from configs import common
from effnetv2_jax.models import create_model
from effnetv2_jax.runtime.config import build
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training.state import functional
from effnetv2_jax.weights import save_weights


def config_for(path, **model) -> ml_collections.ConfigDict:
    config = common.get_config()
    config.model.update({"name": "efficientnetv2-tiny", "dtype": "float32", **model})
    config.update({"init_weights": str(path), "epochs": 5.0, "batch_size": 8})
    config.update({"eval_batch_size": 8, "eval_image_size": 32})
    return config


def same(left, right) -> bool:
    leaves = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(x, y) for x, y in leaves)


def test_the_state_begins_with_the_weights_but_for_another_classifier(tmp_path):
    saved = create_model("efficientnetv2-tiny", num_classes=3, rngs=nnx.Rngs(7))
    saved.stem.norm.mean[...] += 0.5
    save_weights(saved, tmp_path / "x.safetensors")
    run = build(config_for(tmp_path / "x.safetensors"))
    state, fresh = run.first_state(), build(config_for("")).first_state()
    _, params, batch_stats = functional(saved)
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    assert same(state.params.pop("classifier"), fresh.params["classifier"])
    params.pop("classifier")
    assert same(state.params, params)
    assert same(state.batch_stats, batch_stats)
    assert same(state.ema_batch_stats, batch_stats)
    assert not same(state.params, {k: v for k, v in fresh.params.items() if k != "classifier"})


def test_without_weights_a_run_begins_at_random():
    config = config_for("")
    states = [build(config).first_state()]
    config.seed = 1
    states.append(build(config).first_state())
    assert not same(states[0].params, states[1].params)


def test_the_config_has_to_remember_how_weights_were_trained(tmp_path):
    path = tmp_path / "x.safetensors"
    save_weights(create_model("efficientnetv2-tiny", padding="symmetric", bn_epsilon=1e-5), path)
    with pytest.raises(
        UsageError,
        match=r"otherwise, set --config.model.padding=symmetric --config.model.bn_epsilon=1e-05",
    ):
        build(config_for(path)).first_state()
    run = build(config_for(path, padding="symmetric", bn_epsilon=1e-5))
    run.first_state()
    with pytest.raises(UsageError, match="unknown padding 'valid'"):
        build(config_for(path, padding="valid"))


def test_weights_that_do_not_say_how_they_compute_need_a_word(tmp_path, caplog):
    path = tmp_path / "efficientnet_best.safetensors"
    save_weights(create_model("efficientnetv2-tiny"), path, naming="timm")
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path)
    with pytest.raises(UsageError, match=r"in training --config\.init_architecture"):
        build(config_for(path)).first_state()
    config = config_for(path)
    config.init_architecture = "tf_efficientnet_b0.ap_in1k"
    with caplog.at_level("INFO"):
        build(config).first_state()
    assert (
        "as timm's tf_efficientnet_b0.ap_in1k, as you say (--config.init_architecture changes"
        in caplog.text
    )
    assert (
        "the weights expect images of torch,mean=127.5,std=127.5, this run prepares v2: "
        "--config.data.preprocessing=torch,mean=127.5,std=127.5 changes it" in caplog.text
    )


def test_weights_that_do_not_fit_are_named(tmp_path):
    save_weights(create_model("efficientnetv2-tiny"), tmp_path / "x.safetensors")
    config = config_for(tmp_path / "x.safetensors", name="efficientnet-b0")
    with pytest.raises(UsageError, match="does not fit efficientnet-b0"):
        build(config).first_state()


def test_a_vit_begins_with_weights_for_other_images(tmp_path):
    path = tmp_path / "x.safetensors"
    saved = create_model("deit-ti", num_classes=3, eval_size=48)
    save_weights(saved, path)
    state = build(config_for(path, name="deit-ti")).first_state()
    assert state.params["embed"]["positions"].shape == (1, 1 + 2 * 2, 192)
    kernel = state.params["blocks"][3]["mlp"]["expand"]["kernel"]
    assert np.array_equal(kernel, saved.blocks[3].mlp.expand.kernel[...])
    save_weights(create_model("deit-ti", eval_size=32, norm_epsilon=1e-5), path, overwrite=True)
    with pytest.raises(UsageError, match=r"otherwise, set --config.model.norm_epsilon=1e-05"):
        build(config_for(path, name="deit-ti")).first_state()
    build(config_for(path, name="deit-ti", norm_epsilon=1e-5)).first_state()
