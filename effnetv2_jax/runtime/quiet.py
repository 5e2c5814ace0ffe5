"""TensorFlow without its chatter."""

import os


def hush_tensorflow(level: int) -> None:
    """Sets what TensorFlow logs, before it is imported; what the user has set stays.

    Args:
        level: 1 without information, 2 without warnings too, 3 without errors too.
    """
    # A 1 is JAX's, not the user's.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = str(level)
