"""What checkpoints cost: ``python -m effnetv2_jax.benchmark checkpoint --steps=100``.

Training steps on noise, in rounds of ``--steps``, alternately with a checkpoint at the round's
beginning, written while it goes on, and without; before that, checkpoints alone. Needs neither
TensorFlow nor clu nor TFDS.
"""

import statistics
import tempfile
import time

import jax
from absl import flags, logging

from effnetv2_jax.benchmarks.timing import step as flags_of_step
from effnetv2_jax.training.survival.agreement import STEPS_BEHIND
from effnetv2_jax.training.survival.checkpoint import Checkpoints

STEPS = flags.DEFINE_integer("steps", 100, "Between two checkpoints.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "With and without, each.", lower_bound=2)
EVERY = flags.DEFINE_integer(
    "every", 100, "Steps between two checkpoints, in the share that is printed.", lower_bound=1
)

flags.adopt_module_key_flags(flags_of_step)


def main() -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells much about itself
    model_step, batch_size = flags_of_step.model_step()
    step, state = model_step.train_step, model_step.state()
    batch, scalars = model_step.batch(batch_size), model_step.scalars()
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
                # As the loop does.
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
            f"a checkpoint alone: {sum(x.nbytes for x in arrays) / 1e6:.1f} MB in {len(arrays)} "
            f"arrays, keeps the loop for {blocked:.2f} s, takes {cpu:.2f} s of a core "
            f"(medians of {ROUNDS.value})"
        )
        times: dict[bool, list[float]] = {True: [], False: []}
        for number in range(ROUNDS.value):
            # Whoever comes first is not always the same.
            for save in (True, False) if number % 2 else (False, True):
                times[save].append(run(save))
        checkpoints.close()
    medians = {save: statistics.median(seconds) for save, seconds in times.items()}
    for save, name in ((True, "with"), (False, "without")):
        print(
            f"{name}: {medians[save]:.2f} s for {STEPS.value} steps (median of {ROUNDS.value}, "
            f"{min(times[save]):.2f} to {max(times[save]):.2f})"
        )
    # Drift over the rounds is larger than a checkpoint, so neighbours are compared.
    extra = [on - off for on, off in zip(times[True], times[False], strict=True)]
    of = medians[False] / STEPS.value * EVERY.value
    low, cost, high = (100 * x / of for x in statistics.quantiles(extra, method="inclusive"))
    print(
        f"a checkpoint costs {statistics.median(extra):.2f} s (median of {len(extra)} neighbouring "
        f"rounds), {cost:.1f} % of {EVERY.value} steps (quartiles {low:.1f} to {high:.1f})"
    )
