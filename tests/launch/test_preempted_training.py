"""The real training program on a pod of four workers, which is taken away twice at random times."""

import json
import random
import time

import numpy as np
import pytest

from effnetv2_jax.training.survival import checkpoint
from tests import tiny_run, xla_flags

SEED = 0
STEPS = 16
BATCH = 64  # of tiny_run
CONFIG = [
    *tiny_run.CONFIG,
    *tiny_run.QUICK,
    "--config.schedule.mixup_alpha=(0.2,0.2)",
    "--config.checkpoint.every_steps=2",
    f"--config.epochs={(STEPS + 0.5) * BATCH / 1437}",
]


def parameters(launcher):
    """All arrays of the last checkpoint that a run has of its model and optimiser."""
    parts = ("params", "batch_stats", "opt_state", "ema_params", "ema_batch_stats")
    return checkpoint.read_parts(launcher.folder, STEPS, parts)


def steps_logged(launcher):
    path = launcher.folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.slow
def test_preempted_twice_it_ends_as_if_nothing_had_been(launcher, tmp_path):
    environment = [
        "JAX_PLATFORMS=cpu",
        f"XLA_FLAGS={xla_flags.for_devices(1)}",
        f"TFDS_DATA_DIR={tmp_path}",
        "JAX_COMPILATION_CACHE_DIR",
    ]

    def command(workdir, *arguments):
        launcher.workdir = workdir
        flags = ["--type=v3-32", f"--workdir={workdir}", f"--env={','.join(environment)}"]
        return ("up", *flags, "--delete_when_done", *arguments), {"job": CONFIG, "pace": 0.5}

    arguments, keywords = command("gs://bucket/whole")
    code, _, err = launcher.run(*arguments, **keywords, timeout=600)
    assert code == 0, err
    whole = parameters(launcher)

    random_times = random.Random(SEED)
    arguments, keywords = command("gs://bucket/preempted", "--keep_alive")
    process = launcher.start(*arguments, **keywords)
    try:
        for part in range(2):
            # Somewhere in this half of the run, at any moment of a step.
            after = random_times.randrange(1, STEPS // 2) + part * STEPS // 2
            while steps_logged(launcher) < after:
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.02)
            time.sleep(random_times.random())
            launcher.cloud.preempt("pod")
            # Until the launcher has seen it, there may be one line of the log more or less.
            taken = launcher.cloud.read("nodes", "pod")["id"]
            while (launcher.cloud.read("nodes", "pod") or {"id": taken})["id"] == taken:
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.02)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, err

    made = [line for line in err.splitlines() if line.startswith("+ ") and " create " in line]
    assert len(made) == 3
    assert err.count("node PREEMPTED: restart") == 2
    status = json.loads((launcher.folder / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", STEPS)
    logs = list((launcher.folder / "logs").glob("*.log"))
    assert len(logs) == 3 * 4
    assert any("resuming at step" in log.read_text() for log in logs)
    assert launcher.cloud.everything() == []

    preempted = parameters(launcher)
    assert preempted.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(preempted[name], array, err_msg=name)
