"""Starts a run on a pod: several processes on one machine, Cloud TPU VMs, or GKE."""

from collections.abc import Callable
from typing import NoReturn

from effnetv2_jax.runtime import cli


def run_launcher(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a launcher: flags before ``--`` are its own, all arguments after it are the program's.

    Args:
        main: The launcher. It is called with the arguments that are not flags of its own, and
            returns its exit code.
    """
    hint = "; the program's own flags come after --"
    cli.run(main, takes_arguments=True, unknown_flag_hint=hint)
