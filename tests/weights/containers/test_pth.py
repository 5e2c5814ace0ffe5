"""Reading files of torch.save without PyTorch: PyTorch's own, damaged ones, malicious ones."""

import argparse
import collections
import io
import os
import pathlib
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights.containers.files import open_tensors
from effnetv2_jax.weights.containers.pth import _MAGIC, open_pth

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN / "torch_files.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    ("file", "prefix"),
    [("torch_zip.pth", ""), ("torch_legacy.pth", ""), ("torch_nested.pth", "state_dict.")],
)
def test_tensors_are_those_that_torch_saved(expected, file, prefix):
    """Views with strides and offsets, halves, integers, parameters (make_torch_files.py)."""
    with open_pth(GOLDEN / file) as tensors:
        assert tensors.shapes.keys() == {prefix + name for name in expected}
        for name, array in expected.items():
            found = tensors.read(prefix + name)
            assert found.shape == tensors.shapes[prefix + name] == array.shape
            if found.dtype.name != "bfloat16":
                assert found.dtype == array.dtype
            np.testing.assert_array_equal(found.astype(array.dtype), array)


@pytest.mark.parametrize("file", ["torch_zip.pth", "torch_legacy.pth"])
def test_a_file_that_is_cut_short_is_named(file, tmp_path):
    data = (GOLDEN / file).read_bytes()
    path = tmp_path / "x.pth"
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with (
            pytest.raises(UsageError, match=r"x.pth' is no file of PyTorch, or damaged"),
            open_pth(path),
        ):
            pass


@pytest.mark.parametrize("file", ["torch_zip.pth", "torch_legacy.pth"])
def test_bytes_that_are_changed_never_do_more_than_raise(file, tmp_path):
    """A changed byte is either noticed, or it changes a number."""
    data = (GOLDEN / file).read_bytes()
    path = tmp_path / "x.pth"
    rng = np.random.default_rng(0)
    noticed = 0
    for place in rng.choice(len(data), 400, replace=False):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            with open_pth(path) as tensors:
                for name in tensors.shapes:
                    if np.prod(tensors.shapes[name]) < 1e4:
                        tensors.read(name)
        except UsageError:
            noticed += 1
    assert noticed > 50


class Evil:
    """An object whose pickle calls a function when it is unpickled."""

    def __init__(self, called, *arguments):
        self._does = (called, arguments)

    def __reduce__(self):
        return self._does


def zip_file(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")


def legacy_file(path, content):
    parts = (_MAGIC, 1001, {"little_endian": True})
    data = b"".join(pickle.dumps(part, protocol=2) for part in parts)
    path.write_bytes(data + content + pickle.dumps([], protocol=2))


@pytest.mark.parametrize("write", [zip_file, legacy_file])
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_pickle_is_not_run(tmp_path, write, protocol):
    proof = tmp_path / "proof"
    content = {"conv_stem.weight": Evil(os.system, f"touch {proof}")}
    data = pickle.dumps(content, protocol=protocol)
    assert b"posix" in data and b"touch" in data
    write(tmp_path / "x.pth", data)
    with (
        pytest.raises(UsageError, match=r"x.pth': .* no tensors but in posix.system, which is not"),
        open_pth(tmp_path / "x.pth"),
    ):
        pass
    assert not proof.exists()


@pytest.mark.parametrize(
    "called", [eval, exec, getattr, np.frombuffer, pathlib.Path, collections.Counter]
)
def test_nothing_that_a_pickle_names_is_looked_up(tmp_path, called):
    zip_file(tmp_path / "x.pth", pickle.dumps(Evil(called, "1"), protocol=4))
    name = f"{called.__module__}.{called.__qualname__}"
    with (
        pytest.raises(UsageError, match=rf"no tensors but in {name}, which is not made"),
        open_pth(tmp_path / "x.pth"),
    ):
        pass


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_checkpoint_of_timms_training_is_read_around_its_objects(tmp_path, protocol):
    """It holds the flags as an argparse.Namespace, and the metric as a scalar of NumPy's."""
    proof = tmp_path / "proof"
    flags = argparse.Namespace(
        model="tf_efficientnetv2_b0", gp="avg", bn_eps=1e-5, model_kwargs={1: 2}
    )
    with zipfile.ZipFile(GOLDEN / "torch_nested.pth") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (name,) = [name for name in files if name.endswith("data.pkl")]
    kinds = [collections.Counter("ab"), {1, 2}, frozenset("a"), pathlib.PurePosixPath("x")]
    evil = Evil(os.system, f"touch {proof}")
    more = {"arch": "tf_x", "args": flags, "metric": np.float64(81.5), "kinds": kinds, "evil": evil}
    # Put into PyTorch's own dictionary: a key, the value's pickle without its ends, and SETITEM.
    data = files[name][:-1]
    for key, value in more.items():
        content = pickle.dumps(value, protocol=protocol)[2:-1]
        data += b"\x8c" + bytes([len(key)]) + key.encode() + content + b"s"
    data += b"."
    with zipfile.ZipFile(tmp_path / "last.pth.tar", "w") as archive:
        for other, content in files.items():
            archive.writestr(other, data if other == name else content)
    with (
        open_pth(tmp_path / "last.pth.tar") as found,
        open_pth(GOLDEN / "torch_nested.pth") as without,
    ):
        assert found.shapes == without.shapes
        arguments = {"global_pool": "avg", "bn_eps": 1e-5}
        assert found.about == {"architecture": "tf_x", "model_args": arguments | {"1": 2}}
        for tensor in without.shapes:
            np.testing.assert_array_equal(found.read(tensor), without.read(tensor))
    with open_tensors(tmp_path / "last.pth.tar") as found:
        assert found.about == {
            "names": ("last", tmp_path.name),
            "architecture": "tf_x",
            "model_args": arguments | {"1": 2},
        }
    assert not proof.exists()


STORAGE = object()


class Tensor:
    """An object that is pickled like PyTorch's view of a storage of four numbers."""

    def __init__(self, rebuild, offset, shape, strides):
        self._does = (
            rebuild,
            (STORAGE, offset, shape, strides, False, collections.OrderedDict()),
        )

    def __reduce__(self):
        return self._does


@pytest.fixture
def pickle_tensor(monkeypatch):
    """Returns a function from (offset, shape, strides) to the pickle that PyTorch would write."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})

    def rebuild(): ...

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = rebuild
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if thing is STORAGE else None

    def dumps(*view):
        file = io.BytesIO()
        Pickler(file, protocol=2).dump({"x": Tensor(rebuild, *view)})
        return file.getvalue()

    return dumps


@pytest.mark.parametrize(
    ("view", "fits"),
    [
        ((0, (2, 2), (2, 1)), True),
        ((1, (3,), (1,)), True),
        ((4, (0,), (1,)), True),
        ((1, (4,), (1,)), False),
        ((0, (2, 2), (4, 1)), False),
        ((3, (2,), (-1,)), False),
        ((-1, (2,), (1,)), False),
        ((0, (2,), (1, 1)), False),
        ((0, (2.0,), (1,)), False),
    ],
)
def test_a_view_lies_within_its_storage(tmp_path, pickle_tensor, view, fits):
    path = tmp_path / "x.pth"
    zip_file(path, pickle_tensor(*view))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())
    if not fits:
        with pytest.raises(UsageError, match=r"x.pth' is no file of PyTorch"), open_pth(path):
            pass
        return
    offset, shape, _ = view
    with open_pth(path) as tensors:
        expected = np.arange(offset, offset + np.prod(shape)).reshape(shape)
        np.testing.assert_array_equal(tensors.read("x"), expected)


def test_a_storage_of_another_size_is_refused(tmp_path):
    """PyTorch's own numbers, one of them changed: the size of a storage."""
    with zipfile.ZipFile(GOLDEN / "torch_zip.pth") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (name,) = [name for name in files if name.endswith("data/0")]
    for data in (files[name][:-4], files[name] + bytes(4)):
        with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
            for other, content in files.items():
                archive.writestr(other, data if other == name else content)
        with (
            open_pth(tmp_path / "x.pth") as tensors,
            pytest.raises(UsageError, match=r"data/0 has \d+ of \d+ bytes"),
        ):
            for tensor in tensors.shapes:
                tensors.read(tensor)


def test_storages_of_the_old_format_are_counted(tmp_path):
    data = (GOLDEN / "torch_legacy.pth").read_bytes()
    # The first storage's numbers are counted before them.
    place = data.index(struct.pack("<q", 12), len(data) // 2)
    (tmp_path / "x.pth").write_bytes(data[:place] + struct.pack("<q", 11) + data[place + 8 :])
    with (
        pytest.raises(UsageError, match="has 11 numbers instead of 12"),
        open_pth(tmp_path / "x.pth"),
    ):
        pass
