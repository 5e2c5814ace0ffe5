"""Modules that are executed when something is first asked of them, and not when imported."""

import contextlib
import importlib.abc
import importlib.machinery
import re
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def postponed(pattern: str) -> Iterator[None]:
    """Within the block, importing some modules costs nothing yet.

    They are executed at the first attribute that is not there without, in whichever thread; other
    threads wait. (``importlib.util.LazyLoader`` of Python 3.12.1 lets them see half a module.)

    Args:
        pattern: a regular expression, of their whole names; what is imported already stays.
    """
    finder = _Finder(re.compile(pattern))
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, pattern: re.Pattern[str]):
        self._pattern = pattern

    def find_spec(self, fullname, path=None, target=None) -> importlib.machinery.ModuleSpec | None:
        if not self._pattern.fullmatch(fullname):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader):
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        names = vars(module)
        # Reentrant: what a module imports may ask the module for something meanwhile.
        lock, begun = threading.RLock(), False

        def execute() -> None:
            nonlocal begun
            with lock:
                if begun:
                    return
                begun = True
                try:
                    self._loader.exec_module(module)
                except BaseException:
                    begun = False
                    raise
                for name, ours in stand_ins.items():
                    if names.get(name) is ours:
                        del names[name]

        def __getattr__(name: str) -> Any:
            execute()
            if names.get("__getattr__") is __getattr__:  # this thread is executing it
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r} yet")
            return getattr(module, name)

        def __dir__() -> list[str]:
            execute()
            return sorted(names)

        stand_ins = {"__getattr__": __getattr__, "__dir__": __dir__}
        names.update(stand_ins)
