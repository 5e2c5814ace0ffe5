"""PyTorch's ``.pth`` and ``.bin`` files, read without PyTorch and without unpickling.

Such a file is a pickle: a program that builds objects and may call anything. This module reads it
with ``pickletools``, which only lists its instructions, and follows those that build lists,
dictionaries and tensors. Anything else that a pickle names is neither looked up nor called: an
``_Opaque`` object stands in its place.

There are two formats: zip archives since PyTorch 1.6, and files of several pickles before.
"""

import contextlib
import dataclasses
import io
import pathlib
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights.containers.tensors import Tensors

_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0a" + _MAGIC.to_bytes(10, "little")

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A run of numbers in the file."""

    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage. Offset and strides count numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Opaque:
    """A stand-in for something that a pickle names, which is never looked up.

    Attributes:
        name: The name in the pickle, such as ``argparse.Namespace``.
        parts: What the pickle puts into the object, in order, such as the dictionary of its
            attributes.
    """

    def __init__(self, name: str, *parts: Any):
        self.name = name
        self.parts = list(parts)

    def __call__(self, *arguments: Any) -> "_Opaque":
        """Returns a stand-in for what a call would return."""
        return _Opaque(self.name, *arguments)

    def extend(self, items: Iterable[Any]) -> None:
        self.parts.extend(items)

    def update(self, items: Iterable[tuple[Any, Any]]) -> None:
        self.parts.append(dict(items))


def _tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *others: Any) -> _Tensor:
    del others  # its need of gradients, its hooks
    whole = all(isinstance(x, int) and x >= 0 for x in (offset, *shape, *strides))
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if not whole or not isinstance(storage, _Storage):
        raise ValueError("a tensor is described otherwise than PyTorch does")
    if 0 not in shape and last >= storage.size:
        raise ValueError("a tensor is larger than its storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


# The only names that stand for something, and the only functions that a pickle may call. All others
# stay ``_Opaque``.
_NAMED: Mapping[str, Any] = {
    "collections.OrderedDict": dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *others: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *others: tensor,
    # Tensors with attributes of their own.
    "torch._tensor._rebuild_from_type_v2": lambda rebuild, kind, parts, state: rebuild(*parts),
} | {
    f"torch.{device}{name}": np.dtype(dtype)
    for name, dtype in _DTYPES.items()
    for device in ("", "cuda.")
}


@contextlib.contextmanager
def open_pth(path: pathlib.Path) -> Iterator[Tensors]:
    """Opens a file of ``torch.save``; tensors in nested dictionaries are named ``outer.inner``.

    Lists, tuples and the attributes of other objects are named like dictionaries. The name and the
    arguments of the network in timm's checkpoints become ``about``.

    Raises:
        UsageError: If it is damaged, or has tensors only in objects that are not made here.
    """
    with path.open("rb") as file:
        try:
            legacy = file.read(len(LEGACY_START)) == LEGACY_START
            file.seek(0)
            content, read_storage = (_legacy if legacy else _zip)(file)
            tensors = _collect(content)
        except Exception as error:  # any error means that the bytes are not as PyTorch writes them
            raise _broken(path, error) from error

        def read(name: str) -> np.ndarray:
            try:
                return _view(tensors[name], read_storage(tensors[name].storage))
            except Exception as error:
                raise _broken(path, error) from error

        shapes = {name: x.shape for name, x in tensors.items()}
        yield Tensors(path, shapes, read, _about(content))


def _broken(path: pathlib.Path, error: Exception) -> UsageError:
    if isinstance(error, UsageError):
        return UsageError(f"{str(path)!r}: {error}")
    reason = str(error) or type(error).__name__
    return UsageError(f"{str(path)!r} is no file of PyTorch, or damaged: {reason}")


def _collect(content: Any) -> dict[str, _Tensor]:
    """Returns the tensors in nested containers by name.

    Raises:
        UsageError: If there are objects that are not made here, and no tensor outside of them.
    """
    tensors: dict[str, _Tensor] = {}
    objects: dict[str, None] = {}
    outside = False
    seen: set[int] = set()
    waiting: list[tuple[str, Any, bool]] = [("", content, False)]
    while waiting:
        name, found, inside = waiting.pop()
        if isinstance(found, _Tensor):
            tensors.setdefault(name, found)
            outside |= not inside
            continue
        if isinstance(found, _Storage):
            raise ValueError(f"tensor {name} is of a kind that is not known")
        # A container may hold itself, or another one in very many places.
        if not isinstance(found, (dict, list, tuple, _Opaque)) or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, _Opaque):
            objects[found.name] = None
            waiting += [(name, part, True) for part in reversed(found.parts)]
            continue
        items = found.items() if isinstance(found, dict) else enumerate(found)
        before = f"{name}." if name else ""
        waiting += [(f"{before}{key}", value, inside) for key, value in reversed([*items])]
    if objects and not outside:
        raise UsageError(
            f"its pickle has no tensors but in {next(iter(objects))}, which is not made here, as "
            "that would run code of the file; if you trust it, load it with PyTorch and save its "
            "state_dict as safetensors"
        )
    return tensors


def _about(content: Any) -> dict[str, Any]:
    """Returns what a checkpoint of timm's training says of its network."""
    if not isinstance(content, dict) or not isinstance(arch := content.get("arch"), str):
        return {}
    flags = content.get("args")
    if not isinstance(flags, _Opaque) or not flags.parts or not isinstance(flags.parts[-1], dict):
        return {"architecture": arch}
    flags = flags.parts[-1]
    # The flags that change what a network computes, with the names of its arguments.
    names = {"gp": "global_pool", "bn_eps": "bn_eps"}
    changed = {x: flags[flag] for flag, x in names.items() if flags.get(flag) is not None}
    more = flags.get("model_kwargs")
    # The keys in somebody's pickle may be of any type.
    given = {str(name): x for name, x in more.items()} if isinstance(more, dict) else {}
    return {"architecture": arch, "model_args": changed | given}


def _view(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    steps = tuple(step * storage.itemsize for step in tensor.strides)
    start = storage[tensor.offset :]
    return np.lib.stride_tricks.as_strided(start, tensor.shape, steps, writeable=False)


def _zip(file: IO[bytes]) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    archive = zipfile.ZipFile(file)
    (pickle,) = [name for name in archive.namelist() if name.endswith("/data.pkl")] or [""]
    if not pickle:
        raise ValueError("it has no data.pkl")
    root = pickle.removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("its numbers are big-endian")

    def read(storage: _Storage) -> np.ndarray:
        name, size = f"{root}data/{storage.key}", storage.size * storage.dtype.itemsize
        if archive.getinfo(name).file_size != size:
            raise ValueError(f"{name} has {archive.getinfo(name).file_size} of {size} bytes")
        return np.frombuffer(archive.read(name), storage.dtype)

    return _run(io.BytesIO(archive.read(pickle))), read


def _legacy(file: IO[bytes]) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    for _ in ("magic number", "version", "machine"):
        machine = _run(file)
    if isinstance(machine, dict) and not machine.get("little_endian", True):
        raise ValueError("its numbers are big-endian")
    storages: dict[str, _Storage] = {}
    content = _run(file, storages)
    starts = {}
    for key in _run(file):
        (size,) = struct.unpack("<q", file.read(8))
        if size != storages[key].size:
            raise ValueError(f"storage {key} has {size} numbers instead of {storages[key].size}")
        starts[key] = file.tell()
        file.seek(size * storages[key].dtype.itemsize, io.SEEK_CUR)
    end = file.tell()
    if file.seek(0, io.SEEK_END) < end:
        raise ValueError("it is cut short")

    def read(storage: _Storage) -> np.ndarray:
        file.seek(starts[storage.key])
        data = file.read(storage.size * storage.dtype.itemsize)
        return np.frombuffer(data, storage.dtype, count=storage.size)

    return content, read


_MARK = object()


def _run(file: IO[bytes], storages: dict[str, _Storage] | None = None) -> Any:
    """Reads a pickle to its end, and returns what it builds of the types that are known here.

    ``storages`` receives the storages that the pickle names.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def pop_to_mark() -> list[Any]:
        place = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK)
        items = stack[place + 1 :]
        del stack[place:]
        return items

    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        match name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                stack.append(_MARK)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_SET":
                empty: dict[str, Any] = {"EMPTY_DICT": {}, "EMPTY_TUPLE": ()}
                stack.append(empty.get(name, []))  # a set is kept as a list
            case "TUPLE" | "FROZENSET":
                stack.append(tuple(pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[argument])
            case "APPEND":
                item = stack.pop()
                stack[-1].extend([item])
            case "APPENDS" | "ADDITEMS":
                items = pop_to_mark()
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1].update([(key, value)])
            case "SETITEMS":
                items = pop_to_mark()
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                stack.append(_named(str(argument).replace(" ", ".")))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_named(f"{module}.{attribute}"))
            case "REDUCE" | "NEWOBJ":
                arguments, called = stack.pop(), stack.pop()
                # A function in _NAMED or a stand-in: nothing else on the stack can be called.
                stack.append(called(*arguments))
            case "NEWOBJ_EX":
                keywords, arguments, called = stack.pop(), stack.pop(), stack.pop()
                stack.append(called(*arguments, keywords))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
                if storages is not None:
                    storages[stack[-1].key] = stack[-1]
            case "BUILD":
                attributes = stack.pop()  # such as the versions in a state dict's _metadata
                if isinstance(stack[-1], _Opaque):
                    stack[-1].extend([attributes])
            case _ if argument is not None and isinstance(argument, (int, float, str, bytes)):
                stack.append(argument)  # a number or a text
            case _:
                raise ValueError(f"its pickle has the instruction {name}, unlike PyTorch's")
    raise ValueError("its pickle has no end")


def _named(name: str) -> Any:
    return _NAMED[name] if name in _NAMED else _Opaque(name)


def _storage(description: tuple) -> _Storage:
    kind, dtype, key, _location, size, *view = description
    if kind != "storage" or any(view) or not isinstance(dtype, np.dtype):
        raise ValueError("a storage is described otherwise than PyTorch does")
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"a storage has {size} numbers")
    return _Storage(str(key), dtype, size)
