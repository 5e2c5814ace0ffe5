"""Worker processes that end with the process that started them.

``Worker`` makes an object in another process and calls its methods. The other process may run
another interpreter: this file needs only Python's standard library, and the worker is started by
its path. ``process_group`` runs any program.

A worker and all that it has started are killed when the block around it is left, which includes
errors and Ctrl-C. If the parent itself is killed, the worker notices that its standard input has
ended, and kills its own process group.
"""

import contextlib
import functools
import importlib.util
import inspect
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Tell = Callable[[Any], None]
"""Sends a value, one that JSON can hold, to the waiting parent while a method runs."""


def import_path() -> str:
    """Returns a PYTHONPATH by which a worker finds this package, however this process found it."""
    root = pathlib.Path(__file__).resolve().parents[2]
    return os.pathsep.join([str(root), *filter(None, sys.path)])


class WorkerError(Exception):
    """A worker that does not start, has died, or whose method raised an exception.

    Attributes:
        kind: The name of the exception's class in the worker. None if the worker is dead.
    """

    def __init__(self, message: str, kind: str | None = None):
        super().__init__(message)
        self.kind = kind


@contextlib.contextmanager
def process_group(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen]:
    """Runs a program in a process group of its own, and kills that group when the block ends.

    Args:
        command: The program and its arguments.
        **options: Further arguments of ``subprocess.Popen``.

    Yields:
        The running process.

    Raises:
        OSError: If the program does not start.
    """
    # Ctrl-C in a terminal reaches only this process, which then ends the group.
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(BrokenPipeError):
                if stream:
                    stream.close()
        process.wait()


class Worker(contextlib.ExitStack):
    """An object in another process; a context manager that ends the process.

    >>> with Worker("string", "Template", {"template": "Hello, $name"}) as worker:
    ...     worker.call("substitute", name="world")
    'Hello, world'

    Args:
        module: The module of the class: a name to import, or the path of a Python file.
        name: The class. Its instances may take ``tell`` as an argument, see ``Tell``.
        arguments: The arguments of the class, which JSON can hold.
        python: The interpreter.
        environment: The environment variables. None means those of this process.

    Raises:
        WorkerError: If the interpreter does not start.
    """

    def __init__(
        self,
        module: str | pathlib.Path,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ):
        super().__init__()
        errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._errors = self.enter_context(errors)
        command = [python, __file__, str(module), name, json.dumps(dict(arguments or {}))]
        try:
            self.process = self.enter_context(
                process_group(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    text=True,
                    env=environment,
                )
            )
        except OSError as error:
            self.close()
            raise WorkerError(f"{python} does not start: {error.strerror}") from error

    def call(self, method: str, *, on_tell: Tell = lambda value: None, **arguments: Any) -> Any:
        """Calls a method of the object, and waits for its result.

        Args:
            method: The name of the method.
            on_tell: Is called with every value that the method tells meanwhile.
            **arguments: The arguments of the method, which JSON can hold, like its result.

        Raises:
            WorkerError: If the method, or the making of the object, raises an exception, or if the
                process is dead.
        """
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):  # the worker is dead, and has no answer
            self.process.stdin.write(json.dumps([method, arguments]) + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.endswith("\n"):
                kind, *values = json.loads(line)
                if kind == "result":
                    return values[0]
                if kind == "error":
                    raise WorkerError(*values)
                on_tell(values[0])
        code = self.process.wait()
        end = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        raise WorkerError(f"its process ended ({end})" + (f": {lines[-1]}" if lines else ""))


def _serve(module: str, name: str, arguments: str) -> None:
    """Runs in the worker: makes the object, and calls its methods as the parent asks."""
    # Python has put this file's folder in front of the import path, with modules that are not meant
    # to be found under their short names.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder or ".") != here]
    # Libraries write to stdout. From here on that is stderr, and answers go to a copy of it.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(kind: str, *values: Any) -> None:
        print(json.dumps([kind, *values]), file=channel)

    requests: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            requests.put(line)
        # The parent is gone. A compilation would go on for minutes.
        if os.getpgid(0) == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    tell = functools.partial(say, "tell")
    served: Any = None
    while True:
        method, options = json.loads(requests.get())
        try:
            if served is None:
                served = _make(module, name, json.loads(arguments), tell)
            say("result", getattr(served, method)(**options))
        except Exception as error:
            traceback.print_exc()
            sentence = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, ModuleNotFoundError) and error.name:
                sentence = f"{error.name} is not installed"
            say("error", sentence, type(error).__name__)


def _make(module: str, name: str, arguments: dict[str, Any], tell: Tell) -> Any:
    if module.endswith(".py"):
        spec = importlib.util.spec_from_file_location("worker", module)
        assert spec and spec.loader
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    else:
        loaded = importlib.import_module(module)
    made = getattr(loaded, name)
    wants_tell = "tell" in inspect.signature(made).parameters
    return made(**arguments, **({"tell": tell} if wants_tell else {}))


if __name__ == "__main__":
    _serve(*sys.argv[1:])
