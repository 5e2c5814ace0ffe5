"""The training program as a JobSet on GKE: prints its manifest, for kubectl.

  python -m launch.gke.jobset --name=v2-s --image=IMAGE --tpu=v5e --topology=4x8 --claim=CLAIM -- \\
    --config=… --workdir=/mnt/shared/v2-s | kubectl apply -f -

Everything after ``--`` goes to the program. Several slices (``--slices``) are one run.
"""

import json
import pathlib
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

from launch.arguments import parse_flags
from launch.gke.machines import MACHINES, MAX_NAME, machine_of

NAME = flags.DEFINE_string("name", None, "Of the job.", required=True)
IMAGE = flags.DEFINE_string("image", None, "Made with launch/gke/Dockerfile.", required=True)
TPU = flags.DEFINE_enum("tpu", None, list(MACHINES), "Kind of TPU.", required=True)
TOPOLOGY = flags.DEFINE_string("topology", None, "Of a slice, as in 4x8 or 2x2x4.", required=True)
SLICES = flags.DEFINE_integer("slices", 1, "That run as one.", lower_bound=1)
CLAIM = flags.DEFINE_string(
    "claim", None, "A ReadWriteMany PersistentVolumeClaim, to be /mnt/shared.", required=True
)
PROGRAM = flags.DEFINE_string("program", "effnetv2_jax.train", "Module to run.")
MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts", 20, "After preemptions and failures, before giving up.", lower_bound=0
)
GRACE_SECONDS = flags.DEFINE_integer(
    "grace_seconds", 300, "That a run has to save before it is killed.", lower_bound=30
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
        except ValueError as error:
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
    """The YAML of a JobSet, one pod a host.

    Args:
        command: of every pod.
        name: of the job.
        image: of the containers.
        tpu: a name in ``MACHINES``.
        topology: of a slice.
        slices: that run as one.
        claim: a PersistentVolumeClaim, for /mnt/shared.
        max_restarts: before it is given up.
        grace_seconds: between SIGTERM and SIGKILL.

    Raises:
        ValueError: as ``machine_of``.
    """
    machine = machine_of(tpu, topology, slices)
    values = {
        "name": name,
        "image": image,
        # Kubernetes puts variables in for $(NAME), and takes $$ for $.
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
    # JSON is YAML, whatever a string has in it.
    quoted = {key: json.dumps(value) for key, value in values.items()}
    return string.Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(quoted)


def main(arguments: list[str]) -> None:
    print(
        manifest(
            ["python", "-m", PROGRAM.value, *arguments[1:]],
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
    app.run(main, flags_parser=parse_flags)
