"""The examples in the docstrings of the models."""

import doctest
import importlib
import pkgutil

import pytest

from effnetv2_jax import models

NAMES = [module.name for module in pkgutil.walk_packages(models.__path__, f"{models.__name__}.")]
WITH_EXAMPLES = {
    f"{models.__name__}.{name}" for name in ("counting", "efficientnet", "kernels.activations")
}


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_module_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted or name not in WITH_EXAMPLES
