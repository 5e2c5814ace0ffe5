"""The door of every program: its flags, errors of one sentence, and exit codes.

This module needs only absl. JAX is imported when a program runs as one of several processes, so
that launchers can use the door on a machine without JAX.
"""

import functools
import gc
import io
import math
import pathlib
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags, logging

from effnetv2_jax.runtime.errors import UsageError, near_names
from effnetv2_jax.runtime.signals import leave

# What absl and ml_collections say of a value of the wrong type, and what is allowed.
_WRONG_TYPES = {
    r"could not convert string to float.*": "a number",
    r"invalid literal for int.*": "a whole number",
    r"\('Non-boolean argument.*": "true or false",
    r"Failed to parse .* as a ConfigDict.*": "a dictionary of fields",
}


def run(
    main: Callable[..., int | None],
    *,
    takes_arguments: bool = False,
    several_processes: bool = False,
    unknown_flag_hint: str = "",
) -> NoReturn:
    """Parses the flags, runs a program, and ends the process with the program's exit code.

    A ``UsageError`` is printed as one sentence with exit code 2, as is a mistake in a flag. Ctrl-C
    ends with exit code 130. Recipes given by ``--config`` may import ``configs`` from any folder.

    Args:
        main: The program. It returns its exit code; None means 0.
        takes_arguments: Calls ``main`` with a list of the arguments that are not flags. If False,
            such arguments are refused.
        several_processes: Adds the flags with which several processes become one run, joins the
            processes before ``main``, and turns on the cache of compiled programs.
        unknown_flag_hint: Text appended to the error about an unknown flag.
    """
    # Importing and tracing a program makes millions of objects that stay. Looking for garbage among
    # them after every 700 new ones took a fifth of the start (docs/performance.md).
    gc.set_threshold(100_000)
    root = str(pathlib.Path(__file__).resolve().parent.parent.parent)
    if root not in sys.path:
        sys.path.append(root)
    if several_processes:
        _define_process_flags()
    # Names of files and classes that the output's encoding does not have are escaped, as Python
    # does on standard error. An output that is no stream of Python's needs no encoding.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")

    def guarded(argv: list[str]) -> int | None:
        try:
            if several_processes:
                _join_processes()
            return main(*([argv[1:]] if takes_arguments else []))
        except UsageError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            # An orderly exit would wait for threads, and for other processes that may be waiting
            # for this one.
            leave(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            leave(130)  # 128 + SIGINT, as shells count
        except Exception:
            jax: Any = sys.modules.get("jax")
            if jax is None or not jax.distributed.is_initialized():
                raise
            traceback.print_exc()
            leave(1)

    parser = functools.partial(
        parse_flags, takes_arguments=takes_arguments, unknown_flag_hint=unknown_flag_hint
    )
    app.run(guarded, flags_parser=parser)
    sys.exit()  # app.run does not return


def parse_flags(
    argv: list[str], *, takes_arguments: bool = False, unknown_flag_hint: str = ""
) -> list[str]:
    """Parses the flags; a mistake in one is printed as one sentence and ends with exit code 2.

    Args:
        argv: The name of the program and its arguments.
        takes_arguments, unknown_flag_hint: See ``run``.

    Returns:
        The name of the program and the arguments that are not flags.
    """
    # Besides absl's own errors, ml_collections raises these: the first two for a field that
    # does not exist, the others for a recipe that refuses its argument or does not load.
    try:
        rest = flags.FLAGS(argv)
    except SystemExit as end:
        # absl ends with 1 after it printed the help that was asked for.
        asked = any(re.fullmatch(r"--?help(short|full|xml)?", text) for text in argv)
        sys.exit(0 if asked else end.code)
    except flags.UnrecognizedFlagError as error:
        refuse(_unknown_flag(error.flagname) + unknown_flag_hint)
    except (AttributeError, KeyError, OSError) as error:
        if _is_raised_by_a_recipe(error):
            raise
        if isinstance(error, OSError):
            refuse(unreadable_config(error))
        refuse(f"unknown config field {one_line(error)}")
    except (flags.Error, TypeError, ValueError, ImportError) as error:
        refuse(one_line(error))
    if rest[1:] and not takes_arguments:
        refuse(f"unexpected argument {rest[1]!r}: every argument is a --flag")
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        # The numbers of a config have rules of their own, see runtime/config.py.
        if isinstance(value, float) and not math.isfinite(value) and "." not in name:
            refuse(f"--{name} must be a finite number, got {value}")
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_is_worth_logging)
    return rest


def refuse(sentence: str) -> NoReturn:
    """Prints an error that the program's user can correct, and exits with code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def one_line(error: BaseException) -> str:
    """Returns the sentence in an exception of ours, of absl or of ml_collections."""
    if isinstance(error.args[0] if error.args else None, BaseException):
        return one_line(error.args[0])
    if isinstance(error, flags.Error) and isinstance(error.__context__, UsageError):
        return one_line(error.__context__)  # absl puts "flag --config=…" in front
    # A KeyError's own str() would quote the text.
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    if missing := re.findall(r"flag --(\w+)=None: Flag --\w+ must have a value", text):
        return _needed(missing)
    for complaint, allowed in _WRONG_TYPES.items():
        if found := re.fullmatch(rf"flag --(\S+?)=(.*): {complaint}", text, re.DOTALL):
            flag = f"--{found[1]}".removeprefix("--config.")
            text = f"{flag} must be {allowed}, got {found[2]!r}"
    if "Traceback" in text:  # ml_collections quotes a recipe's own error with its traceback
        text = [line for line in text.splitlines() if "Error: " in line][-1].partition("Error: ")[2]
    return " ".join(text.split()).replace("' Did you", "': did you")


def _needed(names: list[str]) -> str:
    """Returns the sentence about flags that are needed and were not given."""

    def described(name: str) -> str:
        text = flags.FLAGS[name].help if name in flags.FLAGS else ""
        text = re.sub(r"^<.*?>: ", "", text)  # the values of an enum
        first = " ".join(text.split()).partition(". ")[0].removesuffix(".")
        if first.partition(" ")[0].istitle():
            first = first[:1].lower() + first[1:]
        return f"--{name}" + (f" ({first})" if first else "")

    subject = "this flag is" if len(names) == 1 else "these flags are"
    return f"{subject} needed: {', '.join(map(described, names))}"


def _unknown_flag(name: str) -> str:
    near = near_names(name, flags.FLAGS)[:3]
    hint = f"did you mean {' or '.join(f'--{x}' for x in near)}? " if near else ""
    return f"unknown flag --{name}: {hint}--help lists the flags"


def unreadable_config(error: OSError) -> str:
    """Returns the sentence for a --config file that ml_collections could not read."""
    # ml_collections wraps the system's error in sentences of its own; the name is at the end.
    return f"config file {str(error).rpartition(': ')[2]} does not exist or cannot be read"


def _define_process_flags() -> None:
    address = flags.DEFINE_string(
        "coordinator_address",
        None,
        "HOST:PORT at which process 0 listens and the other processes of the run meet it. On Cloud "
        "TPU and in Slurm none of these three flags is needed.",
    )
    count = flags.DEFINE_integer(
        "num_processes",
        None,
        "Number of processes of the run. 1 means one process, even if the environment announces "
        "others.",
    )
    number = flags.DEFINE_integer(
        "process_id", None, "Number of this process, from 0 to num_processes − 1."
    )
    for flag in (address, count, number):
        # So that --help lists them with the program's own.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag.name])


def _join_processes() -> None:
    from effnetv2_jax.runtime import caches, hosts

    process = flags.FLAGS
    hosts.start(process.coordinator_address, process.num_processes, process.process_id)
    if not hosts.is_first():
        logging.set_verbosity(logging.WARNING)
    caches.turn_on()


def _is_worth_logging(record) -> bool:
    """Drops what these libraries log about themselves, except warnings and errors."""
    if record.exc_info and isinstance(record.exc_info[1], KeyboardInterrupt):
        return False  # the user pressed Ctrl-C and knows
    chatty = ("jax", "orbax", "tensorflow_datasets")
    return record.levelno > 20 or not any(f"/{name}/" in record.pathname for name in chatty)


def _is_raised_by_a_recipe(error: BaseException) -> bool:
    """Returns True if a recipe raised the error: its author needs the traceback."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    flag_code = ("/absl/", "/ml_collections/", "/runtime/recipe.py", "<frozen importlib")
    return any(all(part not in frame.filename for part in flag_code) for frame in frames)
