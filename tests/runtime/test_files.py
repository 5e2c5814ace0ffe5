"""Files that are there whole or not at all, whatever goes wrong on the way."""

import errno
import os
import pathlib
import re
import threading

import pytest

from effnetv2_jax.runtime import files
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.files import write_atomically
from tests.odd_names import NAMES

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


def test_a_plain_path_is_given_as_it_is(tmp_path):
    with files.plain_path(tmp_path) as plain:
        assert plain == tmp_path


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_any_other_folder_gets_a_link_as_long_as_it_is_needed(tmp_path, name):
    folder = tmp_path / "a*" / name
    folder.mkdir(parents=True)
    with files.plain_path(folder) as plain:
        assert re.fullmatch(r"[a-zA-Z0-9_/.-]+", str(plain))
        (plain / "file").write_text(NEW, encoding="utf-8")
        assert not plain.is_relative_to(tmp_path)
    assert (folder / "file").read_text(encoding="utf-8") == NEW
    assert not plain.parent.exists()


def test_a_first_part_that_etils_takes_for_a_scheme_is_not_plain():
    for name in ("/gs/bucket/run", "/s3"):
        with files.plain_path(pathlib.Path(name)) as plain:
            assert os.readlink(plain) == name


def test_only_the_folder_of_temporary_files_has_to_know_links(tmp_path, monkeypatch):
    """In a file system without links, a workdir may have any name too."""
    (tmp_path / "a*").mkdir()
    symlink = os.symlink

    def refuse(target, link, *arguments, **keywords):
        if pathlib.Path(link).is_relative_to(tmp_path):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), link)
        symlink(target, link, *arguments, **keywords)

    monkeypatch.setattr(os, "symlink", refuse)
    with files.plain_path(tmp_path / "a*") as plain:
        assert os.readlink(plain) == str(tmp_path / "a*")
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    with (
        pytest.raises(UsageError, match=r"a link to it cannot be made: set TMPDIR"),
        files.plain_path(tmp_path / "a*"),
    ):
        pass


def test_a_folder_of_temporary_files_with_such_a_name_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path / "[t]"))
    with files.plain_path(tmp_path / "a*") as plain:
        assert plain.is_relative_to("/tmp")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("gs://bucket/run", "is a URL: mount the bucket"),
        ("a\0b", "is no path: embedded null"),
        ("x/" * 2000, "bytes too long"),
    ],
)
def test_what_is_no_path_here_is_refused_in_one_sentence(path, says):
    with pytest.raises(UsageError, match=says):
        files.local_path(path)


def test_a_path_is_what_the_user_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert files.local_path("~/a*") == pathlib.Path("/home/me/a*")
    assert files.local_path("~nobody-has-this-name/x") == tmp_path / "~nobody-has-this-name" / "x"
