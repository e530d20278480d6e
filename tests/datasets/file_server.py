"""A web server on 127.0.0.1 that does what servers do on bad days."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """What it serves, and how badly.

    Attributes:
        files: content by path, without the leading slash.
        ranges: whether it knows range requests.
        cut_after: the first answers longer than this are cut there, as many as ``cuts``.
        statuses: answers of the next requests, in place of the file.
        requests: (path, first byte asked for or None) of every request.
        sent: bytes of content that went out.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    says_size: bool = True
    cut_after: int = 0
    cuts: int = 0
    statuses: list[int] = field(default_factory=list)
    requests: list[tuple[str, int | None]] = field(default_factory=list)
    sent: int = 0
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.lstrip("/")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        self.requests.append((path, int(wanted[1]) if wanted else None))
        if self.statuses:
            handler.send_error(self.statuses.pop(0))
            return
        if path not in self.files:
            handler.send_error(404)
            return
        content = self.files[path]
        start, end = (
            (int(wanted[1]), min(int(wanted[2]) + 1, len(content)))
            if wanted and self.ranges
            else (0, len(content))
        )
        handler.send_response(206 if wanted and self.ranges else 200)
        if wanted and self.ranges:
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        if self.says_size:
            handler.send_header("Content-Length", str(end - start))
        handler.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        handler.end_headers()
        body = content[start:end]
        if self.cuts and len(body) > self.cut_after:
            self.cuts -= 1
            body = body[: self.cut_after]
        try:
            handler.wfile.write(body)
            self.sent += len(body)
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # who only wanted the headers is gone


@contextmanager
def running(server: FileServer) -> Iterator[FileServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *arguments) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
