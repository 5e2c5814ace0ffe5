"""Weights from the checkpoints of a run."""

import dataclasses

import jax
import optax
import pytest

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training.state import create_state, functional
from effnetv2_jax.training.survival.checkpoint import Checkpoints
from effnetv2_jax.weights import load_model
from tests.weights.conftest import arrays, make_tiny, same_bits

CONFIG = {
    "model": {"name": "efficientnetv2-tiny"},
    "data": {"name": "letters", "preprocessing": "finetune"},
    "eval_image_size": 40,
}
CLASSES = list("abcdefghij")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with two checkpoints; the raw weights and the averaged ones of the last."""
    workdir = tmp_path_factory.mktemp("run")
    raw, average = make_tiny(seed=1), make_tiny(seed=2)
    _, params, batch_stats = functional(raw)
    _, ema_params, ema_batch_stats = functional(average)
    state = create_state(params, batch_stats, optax.adam(1e-3))
    state = dataclasses.replace(state, ema_params=ema_params, ema_batch_stats=ema_batch_stats)
    checkpoints = Checkpoints(workdir)
    for step in (3, 7):
        now = dataclasses.replace(state, step=jax.numpy.int32(step))
        checkpoints.save(now, {"config": CONFIG, "class_names": CLASSES})
    checkpoints.close()
    return workdir, raw, average


@pytest.mark.parametrize("ema", [True, False])
def test_a_run_gives_its_averages_or_its_raw_weights(run, ema):
    workdir, raw, average = run
    model, loaded = load_model(str(workdir), ema=ema)
    assert same_bits(arrays(model), arrays(average if ema else raw))
    assert loaded.class_names == tuple(CLASSES)
    assert loaded.spec.preprocessing == "finetune"
    assert loaded.spec.eval_size == 40
    assert "a run of efficientnetv2-tiny on letters, step 7" in str(loaded)
    assert ("moving average" in str(loaded)) == ema


def test_a_damaged_checkpoint_is_passed_over(run, tmp_path):
    import shutil

    workdir = tmp_path / "run"
    shutil.copytree(run[0], workdir)
    largest = max((workdir / "checkpoints" / "7").rglob("*"), key=lambda x: x.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-10])
    _, loaded = load_model(str(workdir))
    assert "step 3" in str(loaded)
    shutil.rmtree(workdir / "checkpoints" / "3")
    with pytest.raises(UsageError, match="holds no checkpoint that is undamaged"):
        load_model(str(workdir))
