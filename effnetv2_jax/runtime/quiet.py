"""Settings that keep TensorFlow from writing to standard error."""

import os


def hush_tensorflow(level: int) -> None:
    """Sets how much TensorFlow logs, unless the user has set it; call this before importing it.

    Args:
        level: 1 leaves out information, 2 also warnings, 3 also errors.
    """
    # JAX sets it to 1 by itself.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = str(level)
