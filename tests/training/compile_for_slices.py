"""Compiles a small training step for two slices of TPUs that are not there.

Prints how many messages between slices it has, for groups of batch norm as the arguments say.
"""

import re
import sys

from jax.experimental import topologies

from effnetv2_jax.benchmarks.timing.steps import StepSpec
from effnetv2_jax.benchmarks.tpu.worker import lower_train_step

devices = topologies.get_topology_desc(
    topology_name="v5e:2x2", platform="tpu", num_slices=2
).devices
for group_size in sys.argv[1:]:
    programs = lower_train_step(
        # The slices take turns.
        [devices[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)],
        StepSpec(
            "efficientnetv2-tiny",
            32,
            optimizer="momentum",
            bn_group_size=int(group_size),
            fsdp=2,
        ),
        batch_per_core=4,
    )
    text = programs["gradients"].program.compile().as_text()
    print(len(re.findall(r" send\(.*xla_megascale_runtime", text)))
