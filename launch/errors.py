"""What a launcher's user can cause or has to know; each message is one sentence.

Not the package's: that imports JAX, which need not be installed here.
"""


class UsageError(ValueError):
    """A value that cannot be used; its message says which and what is allowed."""


class CallFailed(Exception):
    """A command that was run and failed.

    Args:
        command: as a shell takes it.
        code: it ended with.
        text: the end of what it said on standard error.
    """

    def __init__(self, command: str, code: int, text: str):
        said = [line for line in text.splitlines() if line.strip()][-1:]
        super().__init__(": ".join([f"exit code {code} of {command}", *said]))
        self.text = text


class Ended(Exception):
    """The job came to an end that is not the wanted one; its message says which."""
