"""Traces that outlive the process: a start need not trace what one before it has traced.

JAX's cache finds a compiled program by its text, which Python takes seconds to make of a network.
Here the text is kept beside it, as ``jax.export`` writes it: no pickle, nothing that is run before
XLA has compiled it. It is found by all that it was made from, and holds as long as the files of
every module that its trace may have passed through are the same.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jaxlib
from absl import logging
from jax import export

from effnetv2_jax.compile_cache import TRACE_SUFFIX as SUFFIX
from effnetv2_jax.training.starting import seconds_since_start
from effnetv2_jax.training.state import PyTree
from effnetv2_jax.training.step import TrainStep

# Whose Python a trace passes through.
_PACKAGES = ("effnetv2_jax", "flax", "jax", "jaxlib", "optax")


@dataclasses.dataclass(frozen=True)
class Traces:
    """Where traces are.

    Attributes:
        folder: that of JAX's cache, which is limited in size together with them.
        origin: what the traced functions close over, as JSON can hold it.
    """

    folder: pathlib.Path
    origin: Mapping[str, Any]

    def traced(
        self, function: jax.stages.Wrapped, name: str, structure: Any, arguments: list
    ) -> Callable:
        """The function without its Python, from its trace, which is read, or made and kept.

        Args:
            function: jitted, of arrays; not traced where its trace is there.
            name: of the function.
            structure: of which the arrays are the leaves, for the function.
            arguments: arrays, or their shapes.

        Returns:
            What gives the same under ``jax.jit``.
        """
        path = self.folder / f"{name}-{self._key(name, structure, arguments)}{SUFFIX}"
        if (found := _read(path)) is None:
            try:
                found = export.export(function)(*arguments)
            except ValueError as error:
                # It writes only such calls of a compiler's own functions as will stay the same.
                logging.info("the trace of %s is not kept: %s", name, error)
                return function
            _write(path, found)
        return found.call

    def _key(self, name: str, structure: Any, arguments: list) -> str:
        device = jax.devices()[0]
        shapes = [(x.shape, str(x.dtype), str(getattr(x, "sharding", ""))) for x in arguments]
        settings = {
            # As they are in this context, where they may be.
            key: repr(getattr(jax.config, key, value))
            for key, value in jax.config.values.items()
        }
        places = [sys.modules[package].__file__ for package in _PACKAGES]
        made_from = [
            *(name, self.origin, str(structure), shapes, settings, os.environ.get("XLA_FLAGS")),
            *(places, jax.__version__, jaxlib.__version__),
            *(device.platform, device.device_kind, jax.device_count()),
        ]
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def kept(train_step: TrainStep, traces: Traces) -> TrainStep:
    """The same step, whose traces are kept.

    Args:
        train_step: of which nothing is traced yet.
        traces: where.
    """

    def gradients(params, batch_stats, step, batch, scalars) -> PyTree:
        names = ["correct", "count", "finite", "loss", *(["wishes"] if "wishes" in batch else [])]
        # Copied to all devices, as the step's number is.
        return params, batch_stats, dict.fromkeys(names, step)

    def update(state, gradients, batch_stats, finite) -> PyTree:
        return state

    options = train_step.compiler_options
    # Not all that jitted functions can do, but all that is asked of these.
    functions: dict[str, Any] = {
        "gradients": _Kept(train_step.gradients, "gradients", traces, gradients, options),
        "update": _Kept(train_step.update, "update", traces, update, options, donates_first=True),
    }
    return dataclasses.replace(train_step, **functions)


class _Kept:
    """A function whose traces are kept; called, and lowered, as what ``jax.jit`` returns.

    Args:
        function: jitted, of trees of arrays.
        name: of it.
        traces: where.
        like: of the arguments → a tree like the result, of arrays that lie on the mesh alike.
        compiler_options: that it is compiled with.
        donates_first: whether the first argument is donated.
    """

    def __init__(
        self,
        function: jax.stages.Wrapped,
        name: str,
        traces: Traces,
        like: Callable[..., PyTree],
        compiler_options: dict[str, str],
        *,
        donates_first: bool = False,
    ):
        # As it was before it was jitted: JAX takes no options of what is within another program.
        self._function = inspect.unwrap(function)
        self._name = name
        self._traces = traces
        self._like = like
        self._compiler_options = compiler_options
        self._donates_first = donates_first
        self._programs: dict[Any, tuple[jax.stages.Wrapped, Any]] = {}

    def __call__(self, *arguments: PyTree) -> PyTree:
        program, structure = self._program(arguments)
        return jax.tree.unflatten(structure, program(*jax.tree.leaves(arguments)))

    def lower(self, *arguments: PyTree) -> jax.stages.Lowered:
        """As of a jitted function; jit finds what is compiled of it."""
        program, _ = self._program(arguments)
        return program.lower(*jax.tree.leaves(arguments))

    def _program(self, arguments: tuple) -> tuple[jax.stages.Wrapped, Any]:
        leaves, structure = jax.tree.flatten(arguments)
        key = (structure, *((x.shape, x.dtype) for x in leaves))
        if key not in self._programs:
            self._programs[key] = self._made(arguments, leaves, structure)
        return self._programs[key]

    def _made(self, arguments: tuple, leaves: list, structure) -> tuple[jax.stages.Wrapped, Any]:
        expected = self._like(*arguments)
        result_structure: Any = jax.tree.structure(expected)

        # Arrays alone: of structures, jax.export knows only some.
        def flat(*leaves):
            result = self._function(*jax.tree.unflatten(structure, leaves))
            assert result_structure == jax.tree.structure(result)
            return jax.tree.leaves(result)

        traced = self._traces.traced(jax.jit(flat), self._name, structure, leaves)

        def program(*leaves):
            return traced(*leaves)

        program.__name__ = self._name
        donated = range(len(jax.tree.leaves(arguments[0]))) if self._donates_first else ()
        jitted = jax.jit(
            program,
            donate_argnums=tuple(donated),
            compiler_options=self._compiler_options,
            out_shardings=[x.sharding for x in jax.tree.leaves(expected)],
        )
        return jitted, result_structure


def _read(path: pathlib.Path) -> export.Exported | None:
    """None where there is none that holds."""
    try:
        first_line, _, text = path.read_bytes().partition(b"\n")
        header = json.loads(first_line)
        if header["sha256"] != hashlib.sha256(text).hexdigest():
            raise ValueError("its contents are not those that were written")
        if header["files"] == _stamps(header["files"]):
            return export.deserialize(bytearray(text))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError) as error:
        logging.warning("%s cannot be used: %s", path, error)
    return None


def _write(path: pathlib.Path, exported: export.Exported) -> None:
    text = bytes(exported.serialize())
    # Copied at once: to list its items takes objects, for which Python may look for garbage and
    # let another thread import something.
    modules = sys.modules.copy()
    files = _stamps(
        file
        for name, module in modules.items()
        if name.partition(".")[0] in _PACKAGES and (file := getattr(module, "__file__", None))
    )
    # One that was written to since may not be what this process has read.
    began = time.time() - seconds_since_start()
    if any(_written(file) > began for file in files):
        return
    header = {"sha256": hashlib.sha256(text).hexdigest(), "files": files}
    # Of this process: others may be at it.
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(json.dumps(header).encode() + b"\n" + text)
        temporary.replace(path)
    except OSError as error:
        logging.info("traces are not kept: %s", error)
        with contextlib.suppress(OSError):
            temporary.unlink()


def _written(file: str) -> float:
    """When a file was last written to, or got its name; the end of time for one that is gone."""
    try:
        return os.stat(file).st_ctime
    except OSError:
        return math.inf


def _stamps(files: Iterable[str]) -> dict[str, list[int] | None]:
    """Size and time of the last change of each file, by which Python knows its own, too."""

    def stamp(file: str) -> list[int] | None:
        with contextlib.suppress(OSError):
            stat = os.stat(file)
            return [stat.st_size, stat.st_mtime_ns]
        return None

    return {file: stamp(file) for file in sorted(files)}
