"""A launcher with a cloud of its own."""

import pytest

from tests.launch.stand_in.launcher import make_launcher


@pytest.fixture
def launcher(tmp_path):
    launcher = make_launcher(tmp_path)
    yield launcher
    launcher.cloud.close()
