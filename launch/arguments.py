"""Flags before ``--``, and after it what is for the program that is launched."""

import sys

from absl import flags


def parse_flags(argv: list[str]) -> list[str]:
    """Returns the launcher's name and the arguments of the program; ends it for a mistake."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        unknown = isinstance(error, flags.UnrecognizedFlagError)
        hint = "; the program's own flags come after --" if unknown else ""
        print(f"error: {' '.join(str(error).split())}{hint}", file=sys.stderr)
        sys.exit(2)
