"""The door of every program: flags, one-sentence errors, exit codes."""

import gc
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import jax
from absl import app, flags, logging

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.signals import leave

# What a program imports and traces is millions of objects that stay. To look for garbage among them
# after every 700 new ones took a fifth of a start (docs/performance.md).
gc.set_threshold(100_000)


def run(main: Callable[..., None], *, takes_arguments: bool = False) -> None:
    """Parses flags and runs a program; what a user can cause ends in one sentence and exit code 2.

    ``--config`` files may do ``from configs import common`` from any folder.

    Args:
        main: the program.
        takes_arguments: main is called with the list of arguments that are not flags; without,
            there may be none.
    """
    root = str(pathlib.Path(__file__).resolve().parent.parent.parent)
    if root not in sys.path:
        sys.path.append(root)

    def parse_flags(argv: list[str]) -> list[str]:
        # Besides absl's own errors, ml_collections lets these through: the first two for a field
        # that is not there, the others for a recipe that refuses its argument or does not load.
        try:
            rest = flags.FLAGS(argv)
        except (AttributeError, KeyError) as error:
            if _is_a_recipes_own(error):
                raise
            refuse(f"unknown config field {_one_line(error)}")
        except OSError as error:
            if _is_a_recipes_own(error):
                raise
            refuse(unreadable_config(error))
        except (flags.Error, TypeError, ValueError, ImportError) as error:
            refuse(_one_line(error))
        if rest[1:] and not takes_arguments:
            refuse(f"unexpected argument {rest[1]!r}: every argument is a --flag")
        logging.set_verbosity(logging.INFO)
        logging.get_absl_handler().addFilter(_is_ours_or_serious)
        return rest

    def guarded(argv: list[str]) -> None:
        try:
            main(*([argv[1:]] if takes_arguments else []))
        except UsageError as error:
            print(f"error: {_one_line(error)}", file=sys.stderr)
            # An orderly exit would wait for other processes, which may be waiting for this one, and
            # for threads.
            leave(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            leave(130)  # 128 + SIGINT, as shells count
        except Exception:
            if not jax.distributed.is_initialized():
                raise
            traceback.print_exc()
            leave(1)

    app.run(guarded, flags_parser=parse_flags)


def refuse(sentence: str) -> NoReturn:
    """Ends the program for what its user can mend."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def _is_ours_or_serious(record) -> bool:
    """A log is for the run; what these libraries say about themselves is left out."""
    if record.exc_info and isinstance(record.exc_info[1], KeyboardInterrupt):
        return False  # whoever interrupts a run knows that
    chatty = ("jax", "orbax", "tensorflow_datasets")
    return record.levelno > 20 or not any(f"/{name}/" in record.pathname for name in chatty)


def _one_line(error: BaseException) -> str:
    """The sentence in an exception of ours, of absl's or of ml_collections'."""
    if isinstance(error.args[0] if error.args else None, BaseException):
        return _one_line(error.args[0])
    # A KeyError's own str() would quote the text.
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    if "Traceback" in text:  # a recipe's own error, quoted whole
        text = [line for line in text.splitlines() if "Error: " in line][-1].partition("Error: ")[2]
    return " ".join(text.split()).replace("' Did you", "': did you")


def _is_a_recipes_own(error: BaseException) -> bool:
    """Whether a recipe raised it: somebody's code, who needs the traceback."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    flag_code = ("/absl/", "/ml_collections/", "<frozen importlib")
    return any(all(part not in frame.filename for part in flag_code) for frame in frames)


def unreadable_config(error: OSError) -> str:
    """The sentence for a --config file that ml_collections could not read."""
    # ml_collections wraps the system's error in sentences of its own; the name is at the end.
    return f"config file {str(error).rpartition(': ')[2]} does not exist or cannot be read"
