"""Files that are there whole or not at all, whatever goes wrong on the way."""

import errno
import os
import pathlib
import threading

import pytest

from effnetv2_jax.runtime import files
from effnetv2_jax.runtime.files import write_atomically

OLD, NEW = "old\n", "new, and longer: ½\n"


@pytest.fixture
def path(tmp_path):
    (tmp_path / "file.json").write_text(OLD)
    return tmp_path / "file.json"


def names(path):
    return [file.name for file in path.parent.iterdir()]


def test_a_file_is_replaced_and_nothing_stays_beside_it(path):
    write_atomically(path, NEW)
    assert path.read_text(encoding="utf-8") == NEW
    assert names(path) == ["file.json"]


def test_a_file_that_is_not_there_is_made(path):
    path.unlink()
    write_atomically(path, NEW)
    assert path.read_text(encoding="utf-8") == NEW


@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace"])
def test_what_cannot_be_written_leaves_what_was_there(path, monkeypatch, step):
    def fail(*arguments, **keywords):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        """A file that takes half of what it gets."""

        def __init__(self, *arguments, **keywords):
            self._file = open(*arguments, **keywords)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._file.close()

        def write(self, text):
            self._file.write(text[: len(text) // 2])
            fail()

    if step == "open":
        monkeypatch.setattr(pathlib.Path, "open", fail)
    elif step == "write":
        monkeypatch.setattr(pathlib.Path, "open", lambda self, *a, **k: Full(self, *a, **k))
    elif step == "fsync":
        monkeypatch.setattr(files.os, "fsync", fail)
    else:
        monkeypatch.setattr(pathlib.Path, "replace", fail)
    with pytest.raises(OSError, match="No space left on device"):
        write_atomically(path, NEW)
    monkeypatch.undo()
    assert path.read_text() == OLD
    assert names(path) == ["file.json"]


def test_a_file_gets_its_name_when_it_is_on_the_disk(path, monkeypatch):
    """Otherwise a machine that loses its power may have a name without contents."""
    done = []
    fsync, replace = os.fsync, pathlib.Path.replace

    def recording_fsync(file):
        done.append(("fsync", os.fstat(file).st_size))
        fsync(file)

    def recording_replace(self, target):
        done.append(("replace", target.name))
        return replace(self, target)

    monkeypatch.setattr(files.os, "fsync", recording_fsync)
    monkeypatch.setattr(pathlib.Path, "replace", recording_replace)
    write_atomically(path, NEW)
    assert done == [("fsync", len(NEW.encode())), ("replace", "file.json")]


def test_whoever_reads_sees_one_or_the_other(path):
    texts = ["a" * 50_000, "b" * 70_000]
    write_atomically(path, texts[0])
    written = threading.Event()

    def write():
        for i in range(30):
            write_atomically(path, texts[i % 2])
        written.set()

    threading.Thread(target=write).start()
    seen = set()
    while not written.is_set():
        seen.add(path.read_text())
    assert seen <= set(texts)


def test_what_utf8_cannot_hold_is_kept_where_that_is_wanted(path):
    name = b"caf\xe9\n".decode(errors="surrogateescape")
    write_atomically(path, name, errors="surrogateescape")
    assert path.read_bytes() == b"caf\xe9\n"
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, name)
    assert path.read_bytes() == b"caf\xe9\n"
