"""Files from a server that drops, truncates, lies about sizes, and serves web pages."""

import base64
import concurrent.futures
import hashlib
import logging
import os
import resource
import socket
import subprocess
import sys
import time

import pytest

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import fetch as fetching
from effnetv2_jax.weights.fetch import Absent, fetch
from tests.weights.server import Page, serve

BODY = bytes(range(256)) * 1000
SUM = hashlib.sha256(BODY).hexdigest()
URL = "https://weights.example/models/x.pth"
AT = "/weights.example/models/x.pth"


def never(path):
    raise AssertionError(f"{path} needs no check, as it has a sum")


def anything(path):
    assert path.stat().st_size > 0


@pytest.fixture
def server(monkeypatch):
    with serve() as running:
        monkeypatch.setenv("EFFNETV2_JAX_MIRROR", running.url)
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(fetching, "_PAUSES_SECONDS", (0.0, 0.0, 0.0))
        yield running


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "x.pth"


def left_in(path) -> set[str]:
    """The names beside a path, but for the lock's."""
    return set(os.listdir(path.parent)) - {f".{path.name}.lock"}


def test_a_file_comes_whole_with_its_sum_beside_it(server, path):
    server.pages[AT] = Page(BODY)
    fetch(URL, path, check=anything)
    assert path.read_bytes() == BODY
    assert left_in(path) == {"x.pth", "x.pth.sha256"}
    checked = subprocess.run(["sha256sum", "-c", "x.pth.sha256"], cwd=path.parent)
    assert checked.returncode == 0
    fetch(URL, path, check=never)
    assert len(server.requests) == 1
    assert server.requests[0][1]["User-Agent"].startswith("effnetv2_jax/")


def test_what_breaks_off_goes_on_where_it_stopped(server, path, monkeypatch):
    monkeypatch.setattr(fetching, "_ENOUGH", 50_000)
    server.pages[AT] = Page(BODY, drop_after=50_000)
    fetch(URL, path, check=anything)
    assert path.read_bytes() == BODY
    ranges = [headers.get("Range") for _, headers in server.requests]
    assert ranges == [None, *(f"bytes={x}-" for x in range(50_000, 256_000, 50_000))]


def test_a_later_process_goes_on_with_the_same_version_only(server, path):
    page = server.pages[AT] = Page(BODY, drop_after=10_000)
    with pytest.raises(UsageError, match=r"it ended after 40,000 of 256,000 bytes; try again lat"):
        fetch(URL, path, check=anything)
    assert left_in(path) == {".x.pth.part", ".x.pth.version"}
    page.drop_after, server.requests[:] = None, []
    fetch(URL, path, check=anything)
    assert [headers["Range"] for _, headers in server.requests] == ["bytes=40000-"]
    assert path.read_bytes() == BODY
    for file in (path, path.with_name("x.pth.sha256")):
        file.unlink()
    page.drop_after = 10_000
    with pytest.raises(UsageError, match="try again later"):
        fetch(URL, path, check=anything)
    server.pages[AT] = Page(BODY[::-1])
    fetch(URL, path, check=anything)
    assert path.read_bytes() == BODY[::-1]


def test_another_part_than_the_one_asked_for_is_not_appended(server, path):
    page = server.pages[AT] = Page(BODY, drop_after=40_000, shift=1)
    with pytest.raises(UsageError, match="try again later"):
        fetch(URL, path, check=anything)
    page.drop_after = None
    fetch(URL, path, check=anything)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("lacks", ["validator", "ranges"])
def test_a_server_that_cannot_go_on_begins_again(server, path, lacks):
    page = server.pages[AT] = Page(BODY, drop_after=10_000, **{lacks: False})
    with pytest.raises(UsageError, match="ended after 10,000 of 256,000 bytes"):
        fetch(URL, path, check=anything)
    page.drop_after = None
    fetch(URL, path, check=anything)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("claims", [len(BODY) + 1000, len(BODY) - 1000])
def test_a_size_that_is_a_lie_keeps_no_file(server, path, claims):
    server.pages[AT] = Page(BODY, claims=claims)
    with pytest.raises(UsageError, match=r"cannot be fetched|is not the file that was published"):
        fetch(URL, path, sha256=SUM, check=never)
    assert not left_in(path) & {"x.pth", "x.pth.sha256"}


def test_a_size_nobody_says_is_fine_if_the_file_is(server, path):
    server.pages[AT] = Page(BODY, claims=-1)
    fetch(URL, path, sha256=SUM[:8], check=never)
    assert path.read_bytes() == BODY

    def short(data):
        raise UsageError("it is short")

    path.unlink()
    path.with_name("x.pth.sha256").unlink()
    server.pages[AT] = Page(BODY[:-9], claims=-1)
    with pytest.raises(UsageError, match="is no whole file of its kind: it is short"):
        fetch(URL, path, check=short)
    assert left_in(path) == set()


@pytest.mark.parametrize("start", [b"<!DOCTYPE html><html>", b"\xef\xbb\xbf\n <HTML lang=en>"])
def test_a_login_page_in_place_of_a_file(server, path, start):
    server.pages[AT] = Page(start + BODY, headers={"Content-Type": "application/octet-stream"})
    with pytest.raises(UsageError, match="is a web page instead of a file: the server may want a"):
        fetch(URL, path, sha256=SUM, check=never)
    assert left_in(path) == set()


def test_another_sum_than_the_published_one(server, path):
    server.pages[AT] = Page(BODY)
    with pytest.raises(UsageError, match=f"its sha256 is {SUM}, which should begin with 12345678"):
        fetch(URL, path, sha256="12345678", check=never)
    assert left_in(path) == set()


def test_a_file_that_changes_is_refused_wherever_it_changes(server, path):
    server.pages[AT] = Page(BODY)
    fetch(URL, path, check=anything)
    path.write_bytes(BODY[::-1])
    with pytest.raises(UsageError, match=r"not the file that was fetched: its SHA-256 is .* del"):
        fetch(URL, path, check=anything)
    path.unlink()
    server.pages[AT] = Page(BODY[::-1])
    with pytest.raises(UsageError, match=rf"is another file than at first.*sha256' says {SUM}"):
        fetch(URL, path, check=anything)
    assert left_in(path) == {"x.pth.sha256"}


def test_the_sums_that_hugging_face_and_google_say_count(server, path):
    for page in (
        Page(location=f"{server.url}/cdn", headers={"X-Linked-Etag": f'"{SUM}"'}),
        Page(
            BODY,
            headers={
                "X-Goog-Hash": f"md5={base64.b64encode(hashlib.md5(BODY).digest()).decode()}",
                "X-Goog-Stored-Content-Encoding": "identity",
            },
        ),
    ):
        server.pages[AT] = page
        server.pages["/cdn"] = Page(BODY)
        fetch(URL, path, check=never)
        path.unlink()
        path.with_name("x.pth.sha256").unlink()
        page.body = server.pages["/cdn"].body = BODY[::-1]
        with pytest.raises(UsageError, match=r"is not the file that was published: its (sha|md5)"):
            fetch(URL, path, check=never)
    # It is the sum of a file that is unpacked on the way.
    page.headers["X-Goog-Stored-Content-Encoding"] = "gzip"
    fetch(URL, path, check=anything)


def test_a_busy_server_is_asked_again_and_one_without_the_file_is_not(server, path):
    server.pages[AT] = Page(BODY, statuses=[503, 429])
    fetch(URL, path, check=anything)
    assert len(server.requests) == 3
    with pytest.raises(Absent, match="is not there: the server says 404 Not Found"):
        fetch(f"{URL}.old", path.with_name("y"), check=anything)
    server.pages[AT] = Page(BODY, statuses=[403])
    with pytest.raises(UsageError, match=r"is refused: the server says 403 Forbidden$"):
        fetch(URL, path.with_name("z"), check=anything)
    assert len(server.requests) == 5


def test_no_network(path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    began = time.monotonic()
    with pytest.raises(UsageError, match=r"cannot be reached: .*; without a network, fetch it els"):
        fetch("https://no-such-host.invalid/x.pth", path, check=anything)
    assert time.monotonic() - began < 5
    monkeypatch.setattr(fetching, "_PAUSES_SECONDS", ())
    with pytest.raises(UsageError, match=r"cannot be fetched: .*Connection refused; try again"):
        fetch("https://127.0.0.1:1/x.pth", path, check=anything)
    assert left_in(path) == set()


def test_a_server_that_says_nothing(path, monkeypatch):
    monkeypatch.setattr(fetching, "_PAUSES_SECONDS", ())
    monkeypatch.setattr(fetching, "_TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("EFFNETV2_JAX_MIRROR", f"http://127.0.0.1:{port}")
        with pytest.raises(UsageError, match=r"cannot be fetched: timed out; try again later"):
            fetch(URL, path, check=anything)


def test_offline_says_what_to_fetch_and_where_to_put_it(server, path, monkeypatch):
    monkeypatch.setenv("EFFNETV2_JAX_OFFLINE", "1")
    with pytest.raises(UsageError) as error:
        fetch(URL, path, check=anything)
    assert str(error.value) == (
        f"'{path}' is not here and EFFNETV2_JAX_OFFLINE is set: fetch {URL} elsewhere and put it "
        "there"
    )
    assert not path.parent.exists()
    path.parent.mkdir()
    path.write_bytes(BODY)
    fetch(URL, path, sha256=SUM, check=never)
    assert server.requests == []
    monkeypatch.setenv("EFFNETV2_JAX_OFFLINE", "perhaps")
    with pytest.raises(UsageError, match="EFFNETV2_JAX_OFFLINE must be 0 or 1, got 'perhaps'"):
        fetch(URL, path.with_name("y"), check=anything)


def test_a_mirror_has_to_be_an_address(path, monkeypatch):
    monkeypatch.setenv("EFFNETV2_JAX_MIRROR", "mirror.example")
    with pytest.raises(UsageError, match="EFFNETV2_JAX_MIRROR must begin with https:// or http://"):
        fetch(URL, path, check=anything)


def test_a_disk_that_is_too_small_or_runs_full_keeps_nothing(server, path):
    server.pages[AT] = Page(BODY, claims=10**18)
    with pytest.raises(UsageError, match=r"needs 1,000,000,000,000\.0 MB, and [\d,.]+ MB are free"):
        fetch(URL, path, check=anything)
    server.pages[AT] = Page(BODY)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UsageError, match=r"cannot be written: \[Errno 27\] File too large"):
            fetch(URL, path, check=anything)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left_in(path) == set()


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written: \[Errno 20\] Not a directory"):
        fetch(URL, tmp_path / "file" / "deep" / "x.pth", check=anything)


def test_https_is_not_left_and_the_token_stays_with_its_host(server, path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("EFFNETV2_JAX_MIRROR")
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    server.pages["/a"] = Page(location=f"{server.url}/b")
    server.pages["/b"] = Page(location=f"{elsewhere}/c")
    server.pages["/c"] = Page(BODY)
    fetch(f"{server.url}/a", path, check=anything)
    tokens = [headers.get("Authorization") for _, headers in server.requests]
    assert tokens == ["Bearer secret", "Bearer secret", None]
    request = fetching.urllib.request.Request("https://weights.example/x")
    with pytest.raises(UsageError, match="redirects to http://other/x, which is not https"):
        fetching._Redirects().redirect_request(request, None, 302, "", {}, "http://other/x")


def test_one_fetches_and_the_others_wait(server, path, caplog):
    server.pages[AT] = Page(BODY)
    with caplog.at_level(logging.INFO), concurrent.futures.ThreadPoolExecutor() as threads:
        # flock is by open file, so threads wait as processes do.
        list(threads.map(lambda _: fetch(URL, path, check=anything), range(4)))
    assert [path for path, _ in server.requests] == [AT]


@pytest.mark.slow
def test_a_process_that_is_killed_frees_the_lock_and_leaves_what_it_had(server, path):
    large = BODY * 400
    server.pages[AT] = Page(large)
    code = (
        "import pathlib, sys; from effnetv2_jax.weights.fetch import fetch\n"
        "fetch(sys.argv[1], pathlib.Path(sys.argv[2]), check=lambda path: None)"
    )
    command = [sys.executable, "-c", code, URL, str(path)]
    kills = 0
    for _ in range(200):
        process = subprocess.Popen(command)
        part = path.with_name(".x.pth.part")
        before = part.stat().st_size if part.exists() else 0
        while process.poll() is None:
            if part.exists() and part.stat().st_size > before + len(large) // 5:
                process.kill()
                kills += 1
                break
        process.wait()
        assert not path.exists() or path.read_bytes() == large
        if path.exists():
            break
    assert kills >= 1
    assert path.read_bytes() == large
    assert any("Range" in headers for _, headers in server.requests)
