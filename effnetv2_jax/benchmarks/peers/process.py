"""The waiting end of a contender's process: starts ``worker``, asks, and ends it."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from effnetv2_jax.benchmarks.peers.contenders import Contender

WORKER = pathlib.Path(__file__).resolve().with_name("worker.py")
PACKAGE_ROOT = WORKER.parents[3]

MAX_REASON = 200
"""Characters of an error that a table can bear."""


class NotRun(Exception):
    """A contender that cannot run; its message is the reason, in one sentence."""


class PeerProcess:
    """A contender in a process of its own, idle until it is asked; leaving the block ends it.

    Args:
        contender: who.
        python: interpreter.
        cores: that it may use.
        cache: empty folder, for what its compiler keeps.

    Raises:
        NotRun: where the interpreter does not start.
    """

    def __init__(self, contender: Contender, *, python: str, cores: Sequence[int], cache: str):
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        arguments = {
            "cores": list(cores),
            "file": str(contender.file),
            "libraries": contender.libraries,
            "options": dict(contender.options),
        }
        try:
            self._process = subprocess.Popen(
                [python, str(WORKER), json.dumps(arguments)],
                # Its end tells the worker that this process is gone.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=environment(contender, len(cores), cache=cache, python=python),
                # Ctrl-C is for this process, which ends that one, and its compilers with it.
                start_new_session=True,
            )
        except OSError as error:
            self._errors.close()
            raise NotRun(f"{python} does not start: {error.strerror}") from error

    def __enter__(self) -> "PeerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        # It has nothing left to do, or nobody waits for it any more.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                assert stream
                stream.close()
        self._process.wait()
        self._errors.close()

    def ask(self, command: str, **options: Any) -> dict[str, Any]:
        """Has it do something, and waits.

        Args:
            command: a method of ``worker.Contender``.
            **options: its arguments.

        Raises:
            NotRun: where it cannot, or is dead.
        """
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps([command, options]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise NotRun(self._last_words()) from None
        answer = self._process.stdout.readline()
        if not answer.endswith("\n"):
            raise NotRun(self._last_words())
        ((kind, value),) = json.loads(answer).items()
        if kind == "error":
            raise NotRun(_shortened(value))
        return value

    def _last_words(self) -> str:
        code = self._process.wait()
        end = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return _shortened(f"its process ended ({end})" + (f": {lines[-1]}" if lines else ""))


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"


def environment(
    contender: Contender, threads: int, *, cache: str, python: str = sys.executable
) -> Mapping[str, str]:
    """The one place for what libraries have to find in the environment when they start."""
    variables = os.environ | {
        # Beside the cores, which a worker chooses itself.
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": str(threads),
        # Threads that wait for their next piece of work by spinning give up after 20 ms at most,
        # so that they are asleep while others run.
        "KMP_BLOCKTIME": "20",
        # All of them share one accelerator.
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        # The first step is one that nobody has compiled before.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TORCHINDUCTOR_CACHE_DIR": cache,
        **contender.environment,
    }
    if python == sys.executable:
        # From wherever this was imported.
        variables["PYTHONPATH"] = os.pathsep.join([str(PACKAGE_ROOT), *filter(None, sys.path)])
    return variables
