"""Several TPU slices as one mesh, on simulated devices that are said to be in slices."""

import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from configs import digits
from effnetv2_jax.benchmarks.tpu.compile import worker_environment
from effnetv2_jax.models.layers import device_groups
from effnetv2_jax.runtime.config import build
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training import mesh as placement
from effnetv2_jax.training.observing import report
from tests import tiny_run

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def slices(monkeypatch):
    """Eight devices of two slices that take turns in JAX's order."""
    monkeypatch.setattr(placement, "slice_of", lambda device: device.id % 2)


def ids(mesh):
    return np.vectorize(lambda device: device.id)(mesh.devices).tolist()


@pytest.mark.parametrize(
    ("device", "number"),
    [
        (SimpleNamespace(slice_index=1), 1),
        # Of a TPU v3, and of a CPU.
        (SimpleNamespace(slice_index=None), 0),
        (SimpleNamespace(), 0),
    ],
)
def test_devices_that_know_of_no_slices_are_in_one(device, number):
    assert placement.slice_of(device) == number


def test_without_slices_devices_stay_in_order():
    devices = jax.devices()[::-1]
    assert ids(placement.make_mesh(devices, fsdp=2)) == [[7, 6], [5, 4], [3, 2], [1, 0]]


def test_slices_come_one_after_the_other(slices):
    assert ids(placement.make_mesh(fsdp=2)) == [[0, 2], [4, 6], [1, 3], [5, 7]]
    assert ids(placement.make_mesh(jax.devices()[::-1])) == [[i] for i in (6, 4, 2, 0, 7, 5, 3, 1)]


def test_neighbours_exchange_within_a_slice(slices):
    mesh = placement.make_mesh(fsdp=2)

    def exchange(slice_numbers):
        groups = device_groups(mesh.size, 4)
        return (
            lax.all_gather(slice_numbers, "fsdp")[None],
            lax.all_gather(slice_numbers, placement.AXES, axis_index_groups=groups)[None],
        )

    over_devices = PartitionSpec(placement.AXES)
    numbers = np.array([placement.slice_of(device) for device in mesh.devices.flat])
    for gathered in jax.jit(
        jax.shard_map(
            exchange, mesh=mesh, in_specs=over_devices, out_specs=over_devices, check_vma=False
        )
    )(numbers):
        of_each = np.asarray(gathered).reshape(mesh.size, -1)
        np.testing.assert_array_equal(of_each, np.broadcast_to(numbers[:, None], of_each.shape))


def test_a_state_is_not_shared_by_slices(slices):
    with pytest.raises(
        UsageError, match=r"^fsdp must divide the number of devices of a slice \(4\), got 8: "
    ):
        placement.make_mesh(fsdp=8)


@pytest.mark.parametrize("group_size", [8, 0])
def test_batch_norm_does_not_cross_slices(slices, group_size):
    config = digits.get_config()
    config.eval_batch_size = 64
    config.model.bn_group_size = group_size
    with pytest.raises(UsageError, match=r"^model.bn_group_size must divide .* slice \(4\), got 8"):
        build(config)


@pytest.mark.slow
def test_the_tpus_compiler_sends_nothing_of_batch_norm_between_slices():
    pytest.importorskip("libtpu")
    result = subprocess.run(
        [sys.executable, "-m", "tests.training.compile_for_slices", "1", "4"],
        cwd=ROOT,
        env=worker_environment() | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    alone, in_slices = result.stdout.split()[-2:]
    assert in_slices == alone
    assert int(alone) > 0


def losses(workdir):
    rows = report.read_history(workdir / "metrics.jsonl")
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


@pytest.mark.slow
def test_two_slices_of_two_processes_train_as_two_processes(tmp_path):
    """Batch norm sees a slice's examples: the even ones and the odd ones, as those two read."""

    def train(program, processes, devices):
        workdir = tmp_path / program
        command = [
            *("--program", program, f"--processes={processes}", f"--devices_per_process={devices}"),
            "--",
            *tiny_run.CONFIG,
            *tiny_run.SGD,
            *tiny_run.QUICK,
            "--config.model.bn_group_size=4",
            "--config.fsdp=2",
            "--config.epochs=0.25",
            f"--workdir={workdir}",
        ]
        result = subprocess.run(
            [sys.executable, "-m", "launch.local_pod", *command],
            cwd=ROOT,
            env=os.environ | {"TFDS_DATA_DIR": str(tmp_path / "data")},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert result.returncode == 0, result.stdout
        return losses(workdir)

    in_slices = train("tests.training.train_in_slices", 4, 2)
    expected = train("effnetv2_jax.train", 2, 4)
    assert len(expected) >= 4
    assert in_slices == pytest.approx(expected, rel=1e-5)
    assert max(expected.values()) > 1.001 * min(expected.values())
