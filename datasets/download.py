"""Download files over HTTP in parallel ranges; each byte is transferred once.

A file is written to ``NAME.part`` in chunks.  ``NAME.part.json`` lists the chunks on disk, so that the next run resumes
after a kill.  If a connection breaks within a chunk, the next one continues at the byte it reached.  From a server without
ranges the file is read in one piece, from the start after every break.  ``NAME`` exists only when the file is complete.

No library does all of this: pooch cannot resume, and pypdl takes twice the disk space.
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from pathlib import Path

import requests
from urllib3.exceptions import HTTPError, MaxRetryError, ProtocolError

from datasets.errors import DataError
from datasets.files import atomic_file
from datasets.http_range import (
    ATTEMPTS,
    RemoteFile,
    answer,
    last_attempt_failed,
    retries,
    session_with_retries,
    total_size,
)

CHUNK = 32 << 20  # bytes that a killed run loses at most, per connection
BLOCK = 256 << 10

Tick = Callable[[int], None]
Progress = Callable[[str, int, int], Tick]
"""``progress(name, total bytes, bytes done already)`` opens a progress line and returns a function that advances it."""


def received(path: Path, remote: RemoteFile) -> int:
    """Number of bytes of ``path`` that earlier runs received."""
    return _Download(path, remote).received


def download(files: Mapping[Path, RemoteFile], *, connections: int, progress: Progress) -> None:
    """Fetch files in parallel; partial files are resumed.

    Args:
        files: the file on its server for each path.
        connections: number of simultaneous requests, over all files.
        progress: receives the number of bytes of every received block.

    Raises:
        DataError: a server refused, a file changed during the download, a connection kept breaking, or the disk is full.
            The next run resumes the download.
    """
    stop = threading.Event()
    downloads = [_Download(path, remote) for path, remote in files.items()]
    with (
        session_with_retries(ATTEMPTS, connections) as session,
        ThreadPoolExecutor(max(1, connections)) as pool,
    ):
        try:
            work = []
            for one in downloads:
                one.prepare()
                tick = progress(one.path.name, one.remote.size, one.received)
                work += [pool.submit(one.fetch, session, chunk, tick, stop) for chunk in one.missing]
            for future in as_completed(work):
                future.result()
        except BaseException as error:
            stop.set()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                folder = next(iter(files)).parent
                raise DataError(
                    f"the disk of {folder} is full; free some space and run the same command again, which resumes "
                    "the download"
                ) from error
            raise
    for one in downloads:
        one.finish()


class _Download:
    """One file and its chunks on disk."""

    def __init__(self, path: Path, remote: RemoteFile) -> None:
        self.path, self.remote = path, remote
        self.part = path.with_name(f"{path.name}.part")
        self.state = path.with_name(f"{path.name}.part.json")
        self._lock = threading.Lock()
        self._step = CHUNK if remote.ranges else max(1, remote.size)
        self._done = self._restored()

    @property
    def received(self) -> int:
        return sum(stop - start for start, stop in map(self._span, self._done))

    @property
    def missing(self) -> list[int]:
        return [n for n in range(-(-self.remote.size // self._step)) if n not in self._done]

    def prepare(self) -> None:
        """Create the partial file at its full size."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.part, "r+b" if self._done else "wb") as file:
            file.truncate(self.remote.size)
        self._save()

    def fetch(self, session: requests.Session, chunk: int, tick: Tick, stop: threading.Event) -> None:
        """Receive one chunk, over several connections if they break."""
        url = self.remote.url
        start, end = self._span(chunk)
        position, left = start, retries(ATTEMPTS)
        with open(self.part, "r+b") as file:
            while position < end:
                reached = position
                file.seek(position)
                try:
                    for block in self._blocks(session, position, end, stop):
                        # Written here and not in _blocks: a full disk must not look like a broken connection.
                        file.write(block)
                        position += len(block)
                        tick(len(block))
                except HTTPError as broken:
                    if position > reached:
                        left = retries(ATTEMPTS)
                    if not self.remote.ranges:
                        tick(start - position)
                        position = start
                    try:
                        left = left.increment("GET", url, error=broken)
                    except MaxRetryError as error:
                        raise last_attempt_failed(url, error) from error
                    left.sleep()
            file.flush()
            os.fsync(file.fileno())
        with self._lock:
            self._done.add(chunk)
            self._save()

    def finish(self) -> None:
        """Rename the complete file to its final name."""
        os.replace(self.part, self.path)
        self.state.unlink(missing_ok=True)

    def _blocks(
        self, session: requests.Session, start: int, end: int, stop: threading.Event
    ) -> Iterator[bytes]:
        """Bytes start to end - 1 of the file, from one connection.

        Raises:
            HTTPError: the connection broke.
        """
        url, size, ranges = self.remote.url, self.remote.size, self.remote.ranges
        with answer(session, url, start, end, ranged=ranges) as response:
            if ranges:
                first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
                if response.status_code != 206 or not first or int(first[1]) != start:
                    raise ProtocolError("the server sent a range that was not requested")
            total = total_size(response) if ranges else response.headers.get("Content-Length")
            if total != str(size):
                raise DataError(
                    f"{url} changed on its server during the download, from {size} bytes to {total}; run again"
                )
            while start < end:
                if stop.is_set():
                    raise CancelledError
                # A short body raises an error. Without decoding, no byte before a break is lost.
                block = response.raw.read(min(BLOCK, end - start), decode_content=False)
                if not block:
                    raise ProtocolError(f"the connection ended at byte {start} of {size}")
                start += len(block)
                yield block

    def _span(self, chunk: int) -> tuple[int, int]:
        return chunk * self._step, min((chunk + 1) * self._step, self.remote.size)

    def _restored(self) -> set[int]:
        """The chunks of the same content that an earlier run received."""
        if not (self.remote.ranges and self.remote.identity and self.part.is_file()):
            return set()
        try:
            content = json.loads(self.state.read_bytes())
            same = {name: content[name] for name in self._identity()} == self._identity()
            whole = self.part.stat().st_size == self.remote.size
            return {int(chunk) for chunk in content["done"]} if same and whole else set()
        except (OSError, ValueError, KeyError, TypeError):
            return set()

    def _identity(self) -> dict[str, object]:
        return {"size": self.remote.size, "identity": self.remote.identity, "chunk": self._step}

    def _save(self) -> None:
        with atomic_file(self.state) as file:
            file.write(json.dumps({**self._identity(), "done": sorted(self._done)}).encode())
