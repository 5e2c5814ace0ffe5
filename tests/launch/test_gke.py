"""The manifest of a JobSet: that it is what was asked for, and fits what GKE has."""

import math
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from launch.gke.machines import MACHINES, MAX_NAME, machine_of

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FLAGS = {"name": "v2-s", "image": "example/image:1", "tpu": "v5e", "topology": "4x8", "claim": "c"}


def run(*command, **flags):
    flags = [f"--{name}={value}" for name, value in (FLAGS | flags).items()]
    return subprocess.run(
        [sys.executable, "-m", "launch.gke.jobset", *flags, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_a_job_is_a_slice_and_a_pod_a_host():
    result = run("--", "--config=a.py", "--workdir=/mnt/shared/run", slices=2, grace_seconds=99)
    assert result.stderr == ""
    manifest = yaml.safe_load(result.stdout)
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert manifest["kind"] == "JobSet"
    assert manifest["metadata"] == {
        "name": "v2-s",
        "annotations": {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        },
    }
    assert manifest["spec"]["failurePolicy"] == {"maxRestarts": 20}
    (slices,) = manifest["spec"]["replicatedJobs"]
    assert slices["replicas"] == 2
    job = slices["template"]["spec"]
    # 32 chips, 4 a host.
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (8, 8, 0)
    assert "podFailurePolicy" not in job
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 99
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    (container,) = pod["containers"]
    assert container["image"] == "example/image:1"
    assert container["command"] == [
        *("python", "-m", "effnetv2_jax.train", "--config=a.py", "--workdir=/mnt/shared/run")
    ]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount == {"name": volume["name"], "mountPath": "/mnt/shared"}
    assert volume["persistentVolumeClaim"] == {"claimName": "c"}


def expanded(word):
    """As Kubernetes does it: $(NAME) is a variable's value, $$ is $."""
    return re.sub(r"\$\$|\$\(\w+\)", lambda m: "$" if m[0] == "$$" else "a value", word)


def test_arguments_arrive_as_they_are():
    words = ['--x=it\'s "q" #1: {a} é\n- b', "--y=$(HOME) ${name} $$"]
    manifest = yaml.safe_load(run("--", *words).stdout)
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert [expanded(word) for word in pod["containers"][0]["command"][3:]] == words


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"name": "V2"}, "--name=V2: must be at most 40 of a-z"),
        ({"name": "v2\n"}, "--name"),
        ({"name": "v" * 41}, "must be at most 40 of a-z"),
        ({"claim": "a b"}, "must be the name of a PersistentVolumeClaim"),
        ({"tpu": "v2"}, "v3|v4|v5e|v5p|v6e"),
        ({"topology": "3x3"}, "there is no v5e '3x3': allowed are 1x1, 2x2, "),
        ({"topology": "2x2", "slices": 2}, "cannot be one job: they need several hosts each"),
        ({"tpu": "v3", "topology": "4x4", "slices": 2}, "and another TPU than v3"),
        ({"slices": 0}, "slices"),
        ({"grace_seconds": 5}, "grace_seconds"),
        ({"config": "a.py"}, "the program's own flags come after --"),
    ],
)
def test_a_mistake_is_one_sentence(flags, reason):
    result = run(**flags)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert reason in result.stderr


def test_slices_are_whole_hosts():
    for tpu, machines in MACHINES.items():
        seen = [topology for machine in machines for topology in machine.topologies]
        assert len(seen) == len(set(seen))
        for machine in machines:
            # ct5lp-hightpu-4t has 4.
            assert machine.machine_type.endswith(f"-{machine.chips}t")
            for topology in machine.topologies:
                sides = [int(side) for side in topology.split("x")]
                assert len(sides) == (3 if tpu in ("v4", "v5p") else 2)
                assert math.prod(sides) == machine.hosts(topology) * machine.chips
                assert machine_of(tpu, topology) is machine


@pytest.mark.parametrize(
    ("tpu", "topology", "hosts"),
    # Of Google's tables: v3-32, v4-32, v5litepod-256, v5p-32, v6e-32.
    [
        ("v3", "4x4", 4),
        ("v4", "2x2x4", 4),
        ("v5e", "16x16", 64),
        ("v5p", "2x2x4", 4),
        ("v6e", "4x8", 8),
    ],
)
def test_hosts_of_slices_that_google_names(tpu, topology, hosts):
    assert machine_of(tpu, topology).hosts(topology) == hosts


def test_what_the_image_copies_is_there():
    lines = (ROOT / "launch/gke/Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert {"effnetv2_jax", "configs", "setup.py"} <= set(copied)


def test_the_commands_of_the_document_are_ours():
    text = (ROOT / "docs/gke.md").read_text()
    (command,) = re.findall(r"python -m launch\.gke\.jobset (.*?) \|", text.replace("\\\n", " "))
    words = shlex.split(command)
    flags = words[: words.index("--")]
    values = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    machine = machine_of(values["tpu"], values["topology"], int(values["slices"]))
    assert f"--machine-type={machine.machine_type}" in text
    assert f"--tpu-topology={values['topology']}" in text
    assert f"--num-nodes={machine.hosts(values['topology'])}" in text
    result = run(*words)
    assert result.returncode == 0, result.stderr


def test_only_absl_is_needed():
    """It runs before anything is installed."""
    code = (
        "import sys, launch.gke.jobset; "
        "print(sorted({'jax', 'numpy', 'yaml', 'flax', 'tensorflow'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "[]\n"
    assert MAX_NAME + len("-slice-9999-999-xxxxx") < 64
