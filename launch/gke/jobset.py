"""Prints the manifest of a JobSet on Google Kubernetes Engine, for kubectl.

  python -m launch.gke.jobset --name=v2-s --image=IMAGE --tpu=v5e --topology=4x8 --claim=CLAIM -- \\
    --config=… --workdir=/mnt/shared/v2-s | kubectl apply -f -

All arguments after ``--`` go to the program. Several slices (``--slices``) are one run.
"""

import json
import pathlib
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from effnetv2_jax.runtime.errors import UsageError
from launch import run_launcher
from launch.gke.machines import MACHINES, MAX_NAME, machine_of

NAME = flags.DEFINE_string("name", None, "Name of the job.", required=True)
IMAGE = flags.DEFINE_string(
    "image", None, "Container image, made with launch/gke/Dockerfile.", required=True
)
TPU = flags.DEFINE_enum("tpu", None, list(MACHINES), "Kind of TPU.", required=True)
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Topology of a slice, as in 4x8 or 2x2x4.", required=True
)
SLICES = flags.DEFINE_integer("slices", 1, "Number of slices that are one run.", lower_bound=1)
CLAIM = flags.DEFINE_string(
    "claim",
    None,
    "PersistentVolumeClaim with access mode ReadWriteMany, mounted at /mnt/shared.",
    required=True,
)
PROGRAM = flags.DEFINE_string("program", "effnetv2_jax.train", "Module to run.")
MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts", 20, "Largest number of restarts after preemptions and failures.", lower_bound=0
)
GRACE_SECONDS = flags.DEFINE_integer(
    "grace_seconds", 300, "Seconds that a run gets to save before it is killed.", lower_bound=30
)

# A Kubernetes name (RFC 1123).
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")

_TEMPLATE = pathlib.Path(__file__).with_name("jobset.yaml")


@flags.validator("name", f"must be at most {MAX_NAME} of a-z, 0-9 and -, from a letter to no -")
def _is_name(name: str) -> bool:
    return name is None or (len(name) <= MAX_NAME and _LABEL.fullmatch(name) is not None)


@flags.validator("claim", "must be the name of a PersistentVolumeClaim")
def _is_claim(name: str) -> bool:
    return name is None or re.fullmatch(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", name) is not None


@flags.multi_flags_validator(["tpu", "topology", "slices"])
def _is_there(values: Mapping[str, Any]) -> bool:
    if None not in values.values():
        try:
            machine_of(values["tpu"], values["topology"], values["slices"])
        except UsageError as error:
            raise flags.ValidationError(str(error)) from error
    return True


def manifest(
    command: Sequence[str],
    *,
    name: str,
    image: str,
    tpu: str,
    topology: str,
    slices: int,
    claim: str,
    max_restarts: int,
    grace_seconds: int,
) -> str:
    """Returns the YAML of a JobSet with one pod per host.

    Args:
        command: The command of every pod.
        name: The name of the job.
        image: The image of the containers.
        tpu: A name in ``MACHINES``.
        topology: The topology of a slice.
        slices: The number of slices that are one run.
        claim: The PersistentVolumeClaim to mount at /mnt/shared.
        max_restarts: The number of restarts after which the job has failed.
        grace_seconds: The time between SIGTERM and SIGKILL.

    Raises:
        UsageError: If there are no such slices, as ``machine_of`` says.
    """
    machine = machine_of(tpu, topology, slices)
    values = {
        "name": name,
        "image": image,
        # Kubernetes replaces $(NAME) by a variable, and $$ by $.
        "command": [word.replace("$", "$$") for word in command],
        "accelerator": machine.accelerator,
        "topology": topology,
        "chips": machine.chips,
        "slices": slices,
        "hosts": machine.hosts(topology),
        "claim": claim,
        "max_restarts": max_restarts,
        "grace_seconds": grace_seconds,
    }
    # JSON is YAML, whatever characters a string holds.
    quoted = {key: json.dumps(value) for key, value in values.items()}
    return string.Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(quoted)


def main(arguments: list[str]) -> None:
    print(
        manifest(
            ["python", "-m", PROGRAM.value, *arguments],
            name=NAME.value,
            image=IMAGE.value,
            tpu=TPU.value,
            topology=TOPOLOGY.value,
            slices=SLICES.value,
            claim=CLAIM.value,
            max_restarts=MAX_RESTARTS.value,
            grace_seconds=GRACE_SECONDS.value,
        ),
        end="",
    )


if __name__ == "__main__":
    run_launcher(main)
