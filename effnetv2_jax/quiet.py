"""TensorFlow without its chatter, and without Keras."""

import contextlib
import os
import sys
from collections.abc import Iterator


def hush_tensorflow(level: int) -> None:
    """Sets what TensorFlow logs, before it is imported; what the user has set stays.

    Args:
        level: 1 without information, 2 without warnings too, 3 without errors too.
    """
    # A 1 is JAX's, not the user's.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = str(level)


@contextlib.contextmanager
def without(module: str) -> Iterator[None]:
    """Within the block, importing a module fails, as if it were not installed.

    Args:
        module: its full name; one that is imported already stays.
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
