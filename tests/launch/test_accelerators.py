"""Accelerator types, against what Google's tables say of them."""

import pytest

from effnetv2_jax.runtime.errors import UsageError
from launch import accelerators

# (chips, cores, hosts): https://cloud.google.com/tpu/docs/v2, …/v3, …/v4, …/v5e, …/v5p, …/v6e.
KNOWN = {
    "v2-8": (4, 8, 1),
    "v2-512": (256, 512, 64),
    "v3-8": (4, 8, 1),
    "v3-32": (16, 32, 4),
    "v3-2048": (1024, 2048, 256),
    "v4-8": (4, 8, 1),
    "v4-32": (16, 32, 4),
    "v4-4096": (2048, 4096, 512),
    "v5litepod-1": (1, 1, 1),
    "v5litepod-8": (8, 8, 1),
    "v5litepod-16": (16, 16, 4),
    "v5litepod-256": (256, 256, 64),
    "v5p-8": (4, 8, 1),
    "v5p-128": (64, 128, 16),
    "v5p-12288": (6144, 12288, 1536),
    "v6e-1": (1, 1, 1),
    "v6e-8": (8, 8, 1),
    "v6e-256": (256, 256, 64),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_type_has_its_chips_cores_and_hosts(name):
    found = accelerators.find(name)
    assert (found.chips, found.cores, found.hosts) == KNOWN[name]
    assert found.type == name


@pytest.mark.parametrize(
    ("name", "runtime_version"),
    [
        ("v3-8", "tpu-ubuntu2204-base"),
        ("v5litepod-4", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-4", "v2-alpha-tpuv6e"),
    ],
)
def test_a_generation_has_its_runtime(name, runtime_version):
    assert accelerators.find(name).runtime_version == runtime_version


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("v3-33", "impossible number of cores: v3 has 8, 32, 128"),
        ("v4-12", "impossible number of cores: v4 has a multiple of 8 up to 8192"),
        ("v6e-2", "impossible number of chips: v6e has 1, 4, 8"),
        ("v5e-16", "did you mean v5litepod-16"),
        ("v3", "allowed are v2-N, v3-N"),
        ("v3-", "unknown accelerator type 'v3-'"),
        ("v3-²", "unknown accelerator type"),
        ("v3-8; rm -rf /", "unknown accelerator type"),
    ],
)
def test_what_there_is_not_is_one_sentence(name, sentence):
    with pytest.raises(UsageError) as error:
        accelerators.find(name)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
