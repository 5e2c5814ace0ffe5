"""Mistaken command lines of a training, by the hundred: each is built or refused in a sentence."""

import collections
import subprocess
import sys

import pytest

from tests.runtime.test_cli import ROOT


@pytest.mark.slow
def test_300_mistaken_configs_are_built_or_refused_in_one_sentence():
    command = [sys.executable, "-m", "tests.runtime.mistaken_configs", "300", "0"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-500:] + result.stderr[-3000:]
    assert "Traceback" not in result.stdout, result.stdout
    ends = [line for line in result.stdout.splitlines() if not line.startswith("[")]
    kinds = collections.Counter(line.partition(":")[0] for line in ends)
    assert set(kinds) == {"built", "refused"}
    assert kinds.total() == 300
    assert min(kinds.values()) > 20
