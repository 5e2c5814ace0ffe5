"""The benchmarks as they run on a bare machine: without what only the data pipeline needs."""

import subprocess
import sys

WITHOUT_DATA_LIBRARIES = (
    "import runpy, sys; "
    "sys.modules.update(dict.fromkeys(['tensorflow', 'tensorflow_datasets', 'clu'])); "
    "runpy.run_module('effnetv2_jax.benchmarks.step', run_name='__main__', alter_sys=True)"
)


def test_the_step_is_timed_without_tensorflow():
    arguments = ["--model=efficientnetv2-tiny", "--image_size=16", "--batch_size=8", "--repeats=5"]
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_DATA_LIBRARIES, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "first gradients" in result.stdout
    assert "(median of 5, " in result.stdout
