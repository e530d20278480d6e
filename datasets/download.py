"""Download files over HTTP in ranges, several at a time; each byte is fetched once.

A file arrives as ``NAME.part`` in chunks that are requested in parallel.  ``NAME.part.json`` lists the chunks on disk, so
a run that was killed resumes where it stopped.  If a connection breaks within a chunk, the next one continues at the byte
it reached.  A server without ranges is read in one piece, from the start after every break.  ``NAME`` exists only
when all of it was received.  RFC 9110, section 14.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema
from urllib3.exceptions import HTTPError, MaxRetryError, ProtocolError
from urllib3.util import Retry

from datasets.errors import DataError
from datasets.files import atomic_file

CHUNK = 32 << 20  # bytes that a killed run loses at most, per connection
BLOCK = 256 << 10
TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 6  # in a row that brought nothing
FIRST_ATTEMPTS = 3  # to reach a server at all
PAUSE = 1.0  # seconds; the pause before the third attempt is twice as long and doubles for each later one
LONGEST_PAUSE = 30.0
# Requests with another error status will not succeed later.
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)

Tick = Callable[[int], None]
Progress = Callable[[str, int, int], Tick]
"""``progress(name, total bytes, bytes done already)`` opens a progress line and returns a function that advances it."""


@dataclass(frozen=True)
class RemoteFile:
    """A server's description of a file.

    Attributes:
        url: its address.
        size: bytes.
        ranges: whether the server answers range requests.
        identity: distinguishes this content from another of the same size; empty if nothing does.
    """

    url: str
    size: int
    ranges: bool
    identity: str


def ask(url: str, *, sha256: str | None = None) -> RemoteFile:
    """Request the first byte of a file to learn its size and whether ranges work.

    Args:
        url: http or https address.
        sha256: the content's known checksum.  It then identifies the content, so that a download that began at one
            server can continue at another.  Otherwise the server's ETag or date does.

    Raises:
        DataError: the server does not have it, does not say its size, or cannot be reached.
    """
    with _session(FIRST_ATTEMPTS) as session, _answer(session, url, 0, 1) as response:
        ranges = response.status_code == 206
        length = _total(response) if ranges else response.headers.get("Content-Length")
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    if length is None or not length.isdigit():
        raise DataError(f"{url}: the server does not say how large the file is; use another mirror")
    return RemoteFile(url, int(length), ranges, sha256 or version)


def received(path: Path, remote: RemoteFile) -> int:
    """Bytes of ``path`` that earlier runs received."""
    return _Download(path, remote).received


def download(files: Mapping[Path, RemoteFile], *, connections: int, progress: Progress) -> None:
    """Fetch files in parallel; partial files are resumed.

    Args:
        files: the file on its server for each path.
        connections: number of simultaneous requests, over all files.
        progress: receives the number of bytes of every received block.

    Raises:
        DataError: a server refused, a file changed while it was read, a connection kept breaking, or the disk is full.
            The next run resumes with the received data.
    """
    stop = threading.Event()
    downloads = [_Download(path, remote) for path, remote in files.items()]
    with _session(ATTEMPTS, connections) as session, ThreadPoolExecutor(max(1, connections)) as pool:
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
        """Receive one chunk, over as many connections as it takes."""
        url = self.remote.url
        start, end = self._span(chunk)
        position, retries = start, _retries(ATTEMPTS)
        with open(self.part, "r+b") as file:
            while position < end:
                reached = position
                file.seek(position)
                try:
                    for block in self._blocks(session, position, end, stop):
                        # A full disk must not look like a broken connection, so _blocks does not write.
                        file.write(block)
                        position += len(block)
                        tick(len(block))
                except HTTPError as broken:
                    if position > reached:
                        retries = _retries(ATTEMPTS)
                    if not self.remote.ranges:
                        tick(start - position)
                        position = start
                    try:
                        retries = retries.increment("GET", url, error=broken)
                    except MaxRetryError as error:
                        raise _given_up(url, error) from error
                    retries.sleep()
            file.flush()
            os.fsync(file.fileno())
        with self._lock:
            self._done.add(chunk)
            self._save()

    def finish(self) -> None:
        """Give the file its name."""
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
        with _answer(session, url, start, end, ranged=ranges) as response:
            if ranges:
                first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
                if response.status_code != 206 or not first or int(first[1]) != start:
                    raise ProtocolError("the server sent a range that was not requested")
            total = _total(response) if ranges else response.headers.get("Content-Length")
            if total != str(size):
                raise DataError(
                    f"{url} changed on its server during the download, from {size} bytes to {total}; run again"
                )
            while start < end:
                if stop.is_set():
                    raise CancelledError
                # A short body raises; without decoding, no byte before the break is lost.
                block = response.raw.read(min(BLOCK, end - start), decode_content=False)
                if not block:
                    raise ProtocolError(f"the connection ended at byte {start} of {size}")
                start += len(block)
                yield block

    def _span(self, chunk: int) -> tuple[int, int]:
        return chunk * self._step, min((chunk + 1) * self._step, self.remote.size)

    def _restored(self) -> set[int]:
        """Chunks that an earlier run received of the same content."""
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


def _session(attempts: int, connections: int = 1) -> requests.Session:
    """A session that repeats requests without an answer or with a temporary error status."""
    session = requests.Session()
    session.headers.update({"User-Agent": "afl-detection", "Accept-Encoding": "identity"})
    adapter = HTTPAdapter(pool_maxsize=connections, max_retries=_retries(attempts))
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    return session


def _retries(attempts: int) -> Retry:
    return Retry(
        total=attempts - 1,
        backoff_factor=PAUSE,
        backoff_max=LONGEST_PAUSE,
        status_forcelist=_TEMPORARY,
        respect_retry_after_header=False,  # a server could ask for hours
    )


@contextlib.contextmanager
def _answer(
    session: requests.Session, url: str, start: int, end: int, *, ranged: bool = True
) -> Iterator[requests.Response]:
    """The answer to a request for bytes start to end - 1, or for the whole file.

    Raises:
        DataError: the server refuses or does not answer, or the address is wrong.
    """
    headers = {"Range": f"bytes={start}-{end - 1}"} if ranged else {}
    try:
        response = session.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    except (InvalidSchema, MissingSchema, InvalidURL) as error:
        raise DataError(f"{url} is not an http or https address; correct the mirror") from error
    except requests.RequestException as error:
        raise _given_up(url, error) from error
    with response:
        if not response.ok:
            raise DataError(
                f"{url} cannot be downloaded: the server answers {response.status_code} {response.reason}; use "
                "another mirror=URL, or download it by hand"
            )
        yield response


def _total(response: requests.Response) -> str | None:
    """Size of the whole file, from an answer with a part of it."""
    found = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
    return found[1] if found else None


def _given_up(url: str, error: Exception) -> DataError:
    """The error after the last attempt."""
    reason = error if isinstance(error, MaxRetryError) or not error.args else error.args[0]
    reason = getattr(reason, "reason", None) or reason
    return DataError(
        f"{url} cannot be downloaded: the last attempt failed with: {reason}; check the network or use mirror=URL, "
        "then run the same command again, which resumes the download"
    )
