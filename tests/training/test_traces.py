"""Traces that are kept: they give the same bits, and are made anew where anything is another."""

import gc
import sys
import types

import jax
import numpy as np
import optax
import pytest

from effnetv2_jax.training import mesh as placement
from effnetv2_jax.training import traces
from effnetv2_jax.training.state import create_state
from effnetv2_jax.training.step import make_train_step
from effnetv2_jax.training.traces import Traces, kept

CLASSES, BATCH, SIZE = 3, 16, 8
SCALARS = dict.fromkeys(("dropout_rate", "mixup_alpha", "cutmix_alpha"), np.float32(0.5))
OPTIMIZER = optax.adam(0.1)


class Model:
    """Of one layer, under a number, as lists of blocks have; counts its traces."""

    traced = 0

    def __call__(self, params, batch_stats, images, *, key, **keywords):
        self.traced += 1
        noise = jax.random.uniform(key, images.shape[:1])
        features = images.mean((1, 2)) + noise[:, None]
        stats = {"mean": 0.9 * batch_stats["mean"] + 0.1 * features.mean(0)}
        return features @ params[0]["kernel"][:3], stats


def setup(devices=1, fsdp=1):
    """A mesh, a state with an array that is split where fsdp > 1, and a step with its model."""
    mesh = placement.make_mesh(jax.devices()[:devices], fsdp=fsdp)
    kernel = np.random.default_rng(0).normal(size=(1 << 13, CLASSES)).astype(np.float32)
    state = create_state({0: {"kernel": kernel}}, {"mean": np.zeros(3, np.float32)}, OPTIMIZER)
    model = Model()
    family = {"mean": (127.5,) * 3, "std": (127.5,) * 3}
    step = make_train_step(model, OPTIMIZER, mesh=mesh, num_classes=CLASSES, **family)
    return mesh, placement.shard_state(state, mesh), step, model


def batch_of(mesh, size=SIZE):
    rng = np.random.default_rng(1)
    arrays = {
        "image": rng.integers(0, 256, (BATCH, size, size, 3), np.uint8),
        "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
        "mask": np.ones(BATCH, np.float32),
        "index": np.arange(BATCH, dtype=np.int32),
    }
    return placement.shard_batch(arrays, mesh)


def two_steps(folder, origin=None, size=SIZE, **layout):
    """Makes two kept steps as a new process would; how often it traced, the state, and metrics."""
    mesh, state, step, model = setup(**layout)
    if folder is not None:
        step = kept(step, Traces(folder, origin or {}))
    for _ in range(2):
        state, metrics = step(state, batch_of(mesh, size), SCALARS)
    return model.traced, state, jax.device_get(metrics)


def test_modules_may_be_imported_while_a_trace_is_written(tmp_path):
    """As other threads do, whenever Python looks for garbage."""
    exported = jax.export.export(jax.jit(lambda x: x + 1))(np.float32(0))
    imported = []

    def another(phase, _):
        imported.append(f"another_module_{len(imported)}")
        sys.modules[imported[-1]] = types.ModuleType(imported[-1])

    threshold = gc.get_threshold()
    gc.callbacks.append(another)
    gc.set_threshold(1)
    try:
        traces._write(tmp_path / "x", exported)
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(another)
        for name in imported:
            del sys.modules[name]
    assert len(imported) > 10
    assert traces._read(tmp_path / "x") is not None


@pytest.mark.parametrize(
    "layout", [{}, {"devices": 8}, {"devices": 8, "fsdp": 2}], ids=["1", "8", "8, split"]
)
def test_a_step_whose_trace_is_read_is_the_same_step(tmp_path, layout):
    traced, plain, metrics = two_steps(None, **layout)
    assert traced == 1
    for expected in (1, 0):  # traced and kept, then read
        traced, state, kept_metrics = two_steps(tmp_path, **layout)
        assert traced == expected
        assert jax.tree.structure(state) == jax.tree.structure(plain)
        for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(plain), strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.sharding == theirs.sharding
        assert metrics.keys() == kept_metrics.keys()
        for name, value in metrics.items():
            np.testing.assert_array_equal(kept_metrics[name], value)


def test_what_is_compiled_ahead_is_found_and_the_old_state_is_donated(tmp_path, caplog):
    mesh, state, step, _ = setup()
    step, batch = kept(step, Traces(tmp_path, {})), batch_of(mesh)
    shapes = placement.abstract(state)
    with jax.log_compiles():
        step.lower_gradients(shapes, placement.abstract(batch), SCALARS).compile()
        step.lower_update(shapes).compile()
        assert "XLA compilation of jit(gradients)" in caplog.text
        assert "XLA compilation of jit(update)" in caplog.text
        caplog.clear()
        new, _ = step(state, batch, SCALARS)
        step(new, batch, SCALARS)
    assert "XLA compilation" not in caplog.text
    assert state.params[0]["kernel"].is_deleted()


def test_the_wishes_of_processes_come_back(tmp_path):
    mesh, state, step, _ = setup()
    batch = batch_of(mesh) | placement.shard_batch({"wishes": np.ones((1, 2), np.float32)}, mesh)
    _, metrics = kept(step, Traces(tmp_path, {}))(state, batch, SCALARS)
    assert metrics["wishes"].tolist() == [1, 1]


def test_what_goes_into_a_program_makes_another_trace(tmp_path, monkeypatch):
    two_steps(tmp_path)
    assert two_steps(tmp_path, size=9)[0] == 1
    assert two_steps(tmp_path, origin={"label_smoothing": 0.1})[0] == 1
    monkeypatch.setenv("XLA_FLAGS", "--of_another_process")
    assert two_steps(tmp_path)[0] == 1
    monkeypatch.undo()
    with jax.default_matmul_precision("highest"):
        assert two_steps(tmp_path)[0] == 1
    assert two_steps(tmp_path)[0] == 0


def test_a_changed_file_makes_another_trace(tmp_path, monkeypatch):
    module = types.ModuleType("optax.ours")
    module.__file__ = str(tmp_path / "ours.py")
    (tmp_path / "ours.py").write_text("x = 1\n")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    # It may have been imported before it was written.
    assert [two_steps(tmp_path)[0] for _ in range(2)] == [1, 1]
    monkeypatch.setattr(traces, "seconds_since_start", lambda: -60.0)
    assert [two_steps(tmp_path)[0] for _ in range(2)] == [1, 0]
    (tmp_path / "ours.py").write_text("x = 12\n")
    assert [two_steps(tmp_path)[0] for _ in range(2)] == [1, 0]
    (tmp_path / "ours.py").unlink()
    assert two_steps(tmp_path)[0] == 1


DAMAGES = {
    "cut off": lambda x: x[:-100],
    "empty": lambda x: b"",
    "a byte": lambda x: x[:-100] + bytes([x[-100] ^ 1]) + x[-99:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_trace_is_said_and_made_anew(tmp_path, damage, caplog):
    two_steps(tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(damage(file.read_bytes()))
    assert two_steps(tmp_path)[0] == 1
    assert caplog.text.count("cannot be used") == 2  # of gradients and update
    assert two_steps(tmp_path)[0] == 0


def test_what_cannot_be_exported_is_traced_each_time(tmp_path, monkeypatch):
    def refuses(function):
        raise ValueError("a custom call without guarantees")

    monkeypatch.setattr(traces.export, "export", refuses)
    _, plain, _ = two_steps(None)
    for _ in range(2):
        traced, state, _ = two_steps(tmp_path)
        assert traced == 1
        np.testing.assert_array_equal(state.params[0]["kernel"], plain.params[0]["kernel"])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_the_trace_alone(tmp_path):
    (tmp_path / "file").write_text("")
    assert two_steps(tmp_path / "file")[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
