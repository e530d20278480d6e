"""A web server on 127.0.0.1 that simulates the failures of servers."""

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
    """The files that it serves, and its failures.

    Attributes:
        files: content by path, without the leading slash.
        ranges: whether it supports range requests.
        says_size: whether responses have a Content-Length.
        says_version: whether responses have an ETag.
        cut_after: the first answers longer than this are cut there, as many as ``cuts``.
        statuses: status codes of the next responses, instead of the file.
        requests: (path, first requested byte or None) of every request.
        sent: number of bytes of content that were sent.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    says_size: bool = True
    says_version: bool = True
    cut_after: int = 0
    cuts: int = 0
    statuses: list[int] = field(default_factory=list)
    requests: list[tuple[str, int | None]] = field(default_factory=list)
    sent: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.lstrip("/")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        with self.lock:  # everything is decided and counted before the response starts
            self.requests.append((path, int(wanted[1]) if wanted else None))
            status = self.statuses.pop(0) if self.statuses else 200 if path in self.files else 404
            if status != 200:
                handler.send_error(status)
                return
            content = self.files[path]
            start, end, status = 0, len(content), 200
            if wanted and self.ranges:
                start, end, status = int(wanted[1]), min(int(wanted[2]) + 1, len(content)), 206
            body = content[start:end]
            if self.cuts and len(body) > self.cut_after:
                self.cuts -= 1
                body = body[: self.cut_after]
            self.sent += len(body)
        handler.send_response(status)
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        if self.says_size:
            handler.send_header("Content-Length", str(end - start))
        if self.says_version:
            handler.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        try:
            handler.end_headers()
            handler.wfile.write(body)
            handler.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # a client that only wanted the headers has disconnected


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
