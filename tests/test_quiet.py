"""What the training program does not import before its first step, and whoever wants it can."""

import subprocess
import sys

import pytest

from effnetv2_jax.quiet import without


def test_within_the_block_a_module_is_not_there():
    sys.modules.pop("this", None)
    with without("this"), pytest.raises(ImportError):
        import this  # noqa: F401
    assert "this" not in sys.modules


def test_what_is_imported_already_stays():
    before = sys.modules["subprocess"]
    with without("subprocess"):
        import subprocess as inside
    assert inside is before is sys.modules["subprocess"]


CODE = """
import sys
import effnetv2_jax.train
print(*sorted({"keras", "matplotlib", "sklearn", "tensorboard"} & set(sys.modules)))
import tensorflow as tf
from tensorflow.keras import layers
print(tf.keras.layers.Dense(2)(tf.zeros([3, 4])).shape, layers.Dense is tf.keras.layers.Dense)
"""


def test_training_imports_no_keras_which_is_there_for_others():
    command = [sys.executable, "-c", CODE]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["", "(3, 2) True"]
