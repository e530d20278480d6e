"""Files over HTTP: several connections, ranges, and no byte fetched twice.

A file arrives as ``NAME.part`` in chunks that are requested side by side; ``NAME.part.json`` beside it says which
chunks are on disk, so a run that was killed goes on where it stopped.  Within a chunk a connection that breaks is
taken up again at the byte it reached.  A server that knows no ranges is read in one piece, from the start after every
break.  ``NAME`` exists only once all of it was received.  RFC 9110, section 14.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from datasets.errors import DataError
from datasets.files import atomic_file

CHUNK = 32 << 20  # bytes that a killed run loses at most, per connection
BLOCK = 256 << 10
TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 6  # in a row that brought nothing
FIRST_ATTEMPTS = 3  # to reach a server at all
PAUSE = 1.0  # seconds before the second attempt; doubled for each later one
LONGEST_PAUSE = 30.0
_AGENT = "afl-detection (Python urllib)"
# Other answers that are no success will not get better by asking again.
_PASSING = {408, 425, 429, 500, 502, 503, 504}

Tick = Callable[[int], None]
Progress = Callable[[str, int, int], Tick]
"""``progress(what, total bytes, bytes done already)`` opens one line and returns what advances it."""


@dataclass(frozen=True)
class RemoteFile:
    """What a server says about a file.

    Attributes:
        url: where it is.
        size: bytes.
        ranges: whether parts of it can be asked for.
        identity: what tells this content from another of the same size; empty where nothing does.
    """

    url: str
    size: int
    ranges: bool
    identity: str


class _Broken(Exception):
    """A connection failed in a way that may pass."""


class _Stopped(Exception):
    """Another connection failed for good, or the user interrupted."""


def ask(url: str, *, sha256: str | None = None) -> RemoteFile:
    """Size of a file on its server, and whether ranges work, by asking for its first byte.

    Args:
        url: http or https address.
        sha256: the content's known checksum.  It then identifies the content, so that a download begun at one
            server can go on at another; else the server's ETag or date does.

    Raises:
        DataError: the server does not have it, does not say its size, or cannot be reached.
    """
    if not re.match(r"https?://[^/]", url):
        raise DataError(f"{url} is no http or https address; correct the mirror")
    never = threading.Event()
    failures = 0
    while True:
        try:
            with _open(url, 0, 1) as response:
                ranges = response.status == 206
                length = _total(response) if ranges else response.headers.get("Content-Length")
                version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        except _Broken as broken:
            failures += 1
            _pause(url, broken, failures, FIRST_ATTEMPTS, never)
            continue
        if length is None or not length.isdigit():
            raise DataError(f"{url}: the server does not say how large the file is; use another mirror")
        return RemoteFile(url, int(length), ranges, sha256 or version)


def received(path: Path, remote: RemoteFile) -> int:
    """Bytes that earlier runs left of the file that is to become ``path``."""
    return _Download(path, remote).received


def download(files: Mapping[Path, RemoteFile], *, connections: int, progress: Progress) -> None:
    """Fetch files side by side; those that are begun are finished.

    Args:
        files: where each file goes.
        connections: number of simultaneous requests, over all files.
        progress: told about every received byte.

    Raises:
        DataError: a server refused, a file changed while it was read, a connection kept breaking, or the disk is full.
            What was received stays for the next run.
    """
    stop = threading.Event()
    downloads = [_Download(path, remote) for path, remote in files.items()]
    with ThreadPoolExecutor(max(1, connections)) as pool:
        try:
            work = []
            for one in downloads:
                one.prepare()
                tick = progress(one.path.name, one.remote.size, one.received)
                work += [pool.submit(one.fetch, chunk, tick, stop) for chunk in one.missing]
            for future in as_completed(work):
                future.result()
        except BaseException as error:
            stop.set()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                folder = next(iter(files)).parent
                raise DataError(
                    f"the disk of {folder} is full; free some space and run the same command again: what was "
                    "received is kept"
                ) from error
            raise
    for one in downloads:
        one.finish()


class _Download:
    """One file: its chunks, and which of them are on disk."""

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
        """Make the file that chunks are written into."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.part, "r+b" if self._done else "wb") as file:
            file.truncate(self.remote.size)
        self._save()

    def fetch(self, chunk: int, tick: Tick, stop: threading.Event) -> None:
        """Receive one chunk, over as many connections as it takes."""
        start, end = self._span(chunk)
        position, failures = start, 0
        with open(self.part, "r+b") as file:
            while position < end:
                reached = position
                file.seek(position)
                try:
                    for block in self._blocks(position, end, stop):
                        # A full disk must not look like a broken connection: this is outside of _blocks.
                        file.write(block)
                        position += len(block)
                        tick(len(block))
                except _Broken as broken:
                    if not self.remote.ranges:
                        tick(start - position)
                        position = start
                    failures = 1 if position > reached else failures + 1
                    _pause(self.remote.url, broken, failures, ATTEMPTS, stop)
            file.flush()
            os.fsync(file.fileno())
        with self._lock:
            self._done.add(chunk)
            self._save()

    def finish(self) -> None:
        """Give the file its name."""
        os.replace(self.part, self.path)
        self.state.unlink(missing_ok=True)

    def _blocks(self, start: int, end: int, stop: threading.Event) -> Iterator[bytes]:
        """Bytes start to end - 1 of the file, from one connection."""
        url, size = self.remote.url, self.remote.size
        with _open(url, start, end, ranged=self.remote.ranges) as response:
            if self.remote.ranges:
                first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
                if response.status != 206 or not first or int(first[1]) != start:
                    raise _Broken("the server sent another range than was asked for")
            total = _total(response) if self.remote.ranges else response.headers.get("Content-Length")
            if total != str(size):
                raise DataError(
                    f"{url} changed on its server during the download, from {size} bytes to {total}; run again"
                )
            while start < end:
                if stop.is_set():
                    raise _Stopped
                try:
                    block = response.read(min(BLOCK, end - start))
                except (OSError, http.client.HTTPException) as error:
                    raise _Broken(_words(error)) from error
                if not block:
                    raise _Broken(f"the connection ended at byte {start} of {size}")
                start += len(block)
                yield block

    def _span(self, chunk: int) -> tuple[int, int]:
        return chunk * self._step, min((chunk + 1) * self._step, self.remote.size)

    def _restored(self) -> set[int]:
        """Chunks that an earlier run left, where they are of the same content."""
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


@contextlib.contextmanager
def _open(url: str, start: int, end: int, *, ranged: bool = True) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request for bytes start to end - 1, or for all of them.

    Raises:
        _Broken: no answer, or one that says to come back.
        DataError: the server refuses.
    """
    headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
    if ranged:
        headers["Range"] = f"bytes={start}-{end - 1}"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _PASSING:
            raise _Broken(f"HTTP {error.code} {error.reason}") from error
        raise DataError(
            f"{url} cannot be downloaded: the server answers {error.code} {error.reason}; get it from another place "
            "with mirror=URL, or by hand"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(_words(error)) from error
    with response:
        yield response


def _total(response: http.client.HTTPResponse) -> str | None:
    """Size of the whole file, in an answer that brings a part of it."""
    found = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
    return found[1] if found else None


def _pause(url: str, broken: _Broken, failures: int, attempts: int, stop: threading.Event) -> None:
    """Wait before the next attempt.

    Raises:
        DataError: there were enough.
        _Stopped: somebody else gave up.
    """
    if failures >= attempts:
        raise DataError(
            f"{url} cannot be downloaded: {failures} attempts in a row failed, the last one with: {broken}; look at "
            "the network or use mirror=URL, then run the same command again: what was received is kept"
        ) from broken
    if stop.wait(min(LONGEST_PAUSE, PAUSE * 2 ** (failures - 1))):
        raise _Stopped


def _words(error: BaseException) -> str:
    """An exception as a reason that can be read."""
    reason = getattr(error, "reason", None) or error
    return str(reason) or type(error).__name__
