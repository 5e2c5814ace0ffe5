"""Time checkpoints: ``python -m effnetv2_jax.benchmark checkpoint --steps=100``.

First writes checkpoints without training. Then trains on noise in rounds of ``--steps``; every
other round begins with a checkpoint, which is written while the steps go on. Needs neither
TensorFlow nor clu nor TFDS.
"""

import statistics
import tempfile
import time

import jax
from absl import flags, logging

from effnetv2_jax.benchmarks.timing import step as flags_of_step
from effnetv2_jax.benchmarks.timing.measure import local_devices, turns
from effnetv2_jax.training.mesh import check_batch_size, shard_state
from effnetv2_jax.training.step import stage_scalars
from effnetv2_jax.training.survival.agreement import STEPS_BEHIND
from effnetv2_jax.training.survival.checkpoint import Checkpoints

STEPS = flags.DEFINE_integer("steps", 100, "Number of steps per round.", lower_bound=1)
ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "Number of rounds with a checkpoint, and without.", lower_bound=2
)
EVERY = flags.DEFINE_integer(
    "every", 100, "Steps between checkpoints, for the share that is printed.", lower_bound=1
)

flags.adopt_module_key_flags(flags_of_step)


def main() -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax says much about itself
    spec, batch_size = flags_of_step.step_of_the_flags(), flags_of_step.BATCH_SIZE.value
    training = spec.build(local_devices())
    check_batch_size("batch_size", batch_size, training.mesh)
    flags_of_step.say_what()
    step, state = training.train_step, shard_state(training.first_state(), training.mesh)
    batch, scalars = spec.noise(batch_size, training.mesh), stage_scalars()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder)

        def run(save: bool) -> float:
            nonlocal state
            started = time.perf_counter()
            if save:
                checkpoints.save(state, {})
            under_way = []
            for _ in range(STEPS.value):
                state, sums = step(state, batch, scalars)
                under_way.append(sums)
                # The training loop waits for the same step.
                jax.device_get(under_way[max(0, len(under_way) - 1 - STEPS_BEHIND)])
            jax.block_until_ready(state)
            checkpoints.finish()
            return time.perf_counter() - started

        def save_alone() -> tuple[float, float]:
            nonlocal state
            state, _ = jax.block_until_ready(step(state, batch, scalars))
            cpu, started = time.process_time(), time.perf_counter()
            checkpoints.save(state, {})
            blocked = time.perf_counter() - started
            checkpoints.finish()
            return blocked, time.process_time() - cpu

        save_alone()  # compiles, and makes what Orbax makes once
        saves = [save_alone() for _ in range(ROUNDS.value)]
        arrays = jax.tree.leaves(state)
        blocked, cpu = (statistics.median(times) for times in zip(*saves, strict=True))
        print(
            f"a checkpoint without training: {sum(x.nbytes for x in arrays) / 1e6:.1f} MB in "
            f"{len(arrays)} arrays, keeps the loop for {blocked:.2f} s, takes {cpu:.2f} s of a "
            f"core (medians of {ROUNDS.value})"
        )
        times: dict[str, list[float]] = {"with": [], "without": []}
        for _, name in turns(times, ROUNDS.value):
            times[name].append(run(save=name == "with"))
        checkpoints.close()
    for name, seconds in times.items():
        print(
            f"{name}: {statistics.median(seconds):.2f} s for {STEPS.value} steps (median of "
            f"{ROUNDS.value}, {min(seconds):.2f} to {max(seconds):.2f})"
        )
    # Times drift by more than a checkpoint costs, so neighbours are compared.
    extra = [on - off for on, off in zip(*times.values(), strict=True)]
    of = statistics.median(times["without"]) / STEPS.value * EVERY.value
    low, cost, high = (100 * x / of for x in statistics.quantiles(extra, method="inclusive"))
    print(
        f"a checkpoint costs {statistics.median(extra):.2f} s (median of {len(extra)} neighbouring "
        f"rounds), {cost:.1f} % of {EVERY.value} steps (quartiles {low:.1f} to {high:.1f})"
    )
