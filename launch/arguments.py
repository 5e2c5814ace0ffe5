"""The entry of the launchers: flags, one-sentence errors, exit codes.

Flags before ``--`` are the launcher's; all words after it go to the program that is launched.
"""

import signal
import sys
from collections.abc import Callable

from absl import app, flags

from effnetv2_jax.runtime.errors import UsageError


def run(main: Callable[[list[str]], int], *, flags_anywhere: bool = False) -> None:
    """Parses flags and runs a launcher; a mistake of the user ends it with exit code 2.

    Args:
        main: The launcher. It is called with the arguments that are not flags of its own, and
            returns the exit code.
        flags_anywhere: Flags of the launcher may also come after an argument.
    """

    def parse_flags(argv: list[str]) -> list[str]:
        flags.FLAGS.set_gnu_getopt(flags_anywhere)
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            unknown = isinstance(error, flags.UnrecognizedFlagError)
            hint = "; the program's own flags come after --" if unknown else ""
            print(f"error: {' '.join(str(error).split())}{hint}", file=sys.stderr)
            sys.exit(2)

    def guarded(argv: list[str]) -> int:
        try:
            return main(argv[1:])
        except UsageError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT

    app.run(guarded, flags_parser=parse_flags)
