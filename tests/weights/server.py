"""An HTTP server on this machine that misbehaves as it is told."""

import contextlib
import dataclasses
import hashlib
import http.server
import threading
from collections.abc import Iterator


@dataclasses.dataclass
class Page:
    """What the server answers at one address.

    Attributes:
        body: The file's bytes.
        claims: The Content-Length to claim; None for the true one, −1 for none.
        drop_after: The number of bytes after which each answer breaks off; None for never.
        statuses: Errors to answer first, one a request.
        validator: True to send an ETag, which a request may be bound to.
        ranges: True to answer requests for the rest of a file.
        shift: The number of bytes by which such an answer begins too early.
        location: The address to redirect to; empty for none.
        headers: More headers.
    """

    body: bytes = b""
    claims: int | None = None
    drop_after: int | None = None
    statuses: list[int] = dataclasses.field(default_factory=list)
    validator: bool = True
    ranges: bool = True
    shift: int = 0
    location: str = ""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


class Server:
    """The pages by path, and the requests that came: path and headers."""

    def __init__(self):
        self.pages: dict[str, Page] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.url = ""

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        asked = dict(handler.headers)
        self.requests.append((handler.path, asked))
        page = self.pages.get(handler.path)
        status = page.statuses.pop(0) if page and page.statuses else 200 if page else 404
        if page is None or status != 200:
            handler.send_error(status)
            return
        if page.location:
            handler.send_response(302)
            for name, value in (page.headers | {"Location": page.location}).items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        body, tag = page.body, f'"{hashlib.sha256(page.body).hexdigest()[:8]}"'
        start = 0
        if page.ranges and "Range" in asked and asked.get("If-Range", tag) == tag:
            start = int(asked["Range"].removeprefix("bytes=").removesuffix("-")) - page.shift
            if start >= len(body):
                handler.send_error(416)
                return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if page.validator:
            handler.send_header("ETag", tag)
        length = len(body) if page.claims is None else page.claims
        if length >= 0:
            handler.send_header("Content-Length", str(length - start))
        for name, value in page.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        end = len(body) if page.drop_after is None else start + page.drop_after
        handler.wfile.write(body[start:end])


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Runs a server until the block ends."""
    server = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    class Listening(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):
            pass  # a client that is gone

    with Listening(("127.0.0.1", 0), Handler) as listening:
        server.url = f"http://127.0.0.1:{listening.server_port}"
        threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        listening.shutdown()
