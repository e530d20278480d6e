"""Downloads from a server on 127.0.0.1: the files equal the served ones, and no byte is downloaded twice."""

from __future__ import annotations

import errno
import json
import random
import threading

import pytest

from datasets import DataError, http_range
from datasets import download as transfer
from datasets.download import download, received
from datasets.http_range import ask, session_with_retries
from tests.datasets.file_server import FileServer, running

SIZE, CHUNK = 1_000_003, 100_000
NAME = "a.zip"


@pytest.fixture
def content() -> bytes:
    return random.Random(0).randbytes(SIZE)


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(transfer, "CHUNK", CHUNK)
    monkeypatch.setattr(transfer, "BLOCK", 7_000)
    monkeypatch.setattr(http_range, "PAUSE", 0.001)


@pytest.fixture
def server(content):
    with running(FileServer(files={NAME: content, "b.zip": content[::-1]})) as server:
        yield server


class Counter:
    """Sums the reported progress."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        self._lock = threading.Lock()

    def __call__(self, what: str, total: int, done: int):
        self.done[what] = done

        def tick(n: int) -> None:
            with self._lock:
                self.done[what] += n

        return tick


def fetch(server: FileServer, path, *, connections: int = 4, sha256: str | None = None) -> Counter:
    counter = Counter()
    remote = ask(f"{server.url}/{path.name}", sha256=sha256)
    download({path: remote}, connections=connections, progress=counter)
    return counter


def first_bytes(server: FileServer) -> list[int | None]:
    """The first byte of each request, except the request for the size."""
    return [start for _, start in server.requests[1:]]


def test_two_downloaded_files_equal_the_served_ones(server, tmp_path):
    remotes = {tmp_path / name: ask(f"{server.url}/{name}") for name in server.files}
    assert {remote.size for remote in remotes.values()} == {SIZE} and all(r.ranges for r in remotes.values())
    counter = Counter()
    download(remotes, connections=4, progress=counter)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == server.files
    assert counter.done == {NAME: SIZE, "b.zip": SIZE}
    assert sorted(start for path, start in server.requests if path == NAME) == [0, *range(0, SIZE, CHUNK)]


def test_an_empty_chunk_is_not_requested(server, tmp_path):
    server.files[NAME] = server.files[NAME][: 3 * CHUNK]
    fetch(server, tmp_path / NAME)
    assert sorted(first_bytes(server)) == [0, CHUNK, 2 * CHUNK]
    assert (tmp_path / NAME).read_bytes() == server.files[NAME]


def test_a_broken_connection_continues_at_the_next_byte(server, content, tmp_path):
    server.cut_after, server.cuts = 30_000, 25
    counter = fetch(server, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == content
    assert server.cuts == 0 and counter.done == {NAME: SIZE}
    # One byte for the size request, then every byte once.
    assert server.sent == SIZE + 1
    assert {start % CHUNK for start in first_bytes(server)} <= {0, 30_000, 60_000, 90_000}


def test_a_second_run_only_downloads_the_missing_chunks(server, content, tmp_path):
    remote = ask(f"{server.url}/{NAME}")
    server.statuses = [404]
    path = tmp_path / NAME
    with pytest.raises(
        DataError, match=r"a\.zip cannot be downloaded: the server answers 404 Not Found; .* mirror=URL"
    ):
        download({path: remote}, connections=1, progress=Counter())
    assert not path.exists() and received(path, remote) == 0
    # Serve three chunks, then reject requests.
    one = transfer._Download(path, remote)
    one.prepare()
    for chunk in (0, 4, 10):
        one.fetch(session_with_retries(1), chunk, lambda n: None, threading.Event())
    here = 2 * CHUNK + SIZE % CHUNK
    assert received(path, remote) == here
    server.requests.clear()
    server.sent = 0
    counter = fetch(server, path)
    assert path.read_bytes() == content and counter.done == {NAME: SIZE}
    assert server.sent == 1 + SIZE - here
    assert not {0, 4 * CHUNK, 10 * CHUNK} & set(first_bytes(server))
    assert [p.name for p in tmp_path.iterdir()] == [NAME]


def begin(server: FileServer, path, sha256: str | None = None) -> None:
    """Create the files of a run that was killed after its first chunk."""
    one = transfer._Download(path, ask(f"{server.url}/{NAME}", sha256=sha256))
    one.prepare()
    one.fetch(session_with_retries(1), 0, lambda n: None, threading.Event())


def test_a_file_that_changed_on_the_server_is_downloaded_again(server, content, tmp_path):
    path = tmp_path / NAME
    begin(server, path)
    server.files[NAME] = content[::-1]
    fetch(server, path)
    assert path.read_bytes() == content[::-1]


def test_without_a_version_or_checksum_a_download_starts_again(server, content, tmp_path):
    server.says_version = False
    path = tmp_path / NAME
    begin(server, path)
    server.files[NAME] = content[::-1]
    fetch(server, path)
    assert path.read_bytes() == content[::-1]


def test_with_a_checksum_another_server_can_continue_a_download(server, content, tmp_path):
    path = tmp_path / NAME
    begin(server, path, sha256="known")
    # Another server has another date and ETag. The first chunk is not requested again, so its bytes are kept.
    server.files[NAME] = b"?" * CHUNK + content[CHUNK:]
    fetch(server, path, sha256="known")
    assert path.read_bytes() == content


@pytest.mark.parametrize("damage", [b"{", b'{"size": 1}', b'{"done": 3}', b""])
def test_a_damaged_list_of_chunks_restarts_the_download(server, content, tmp_path, damage):
    path = tmp_path / NAME
    begin(server, path)
    (tmp_path / f"{NAME}.part.json").write_bytes(damage)
    fetch(server, path)
    assert path.read_bytes() == content


def test_a_server_without_ranges_sends_the_file_in_one_piece(server, content, tmp_path):
    server.ranges = False
    path = tmp_path / NAME
    remote = ask(f"{server.url}/{NAME}")
    assert not remote.ranges and remote.size == SIZE
    server.cut_after, server.cuts = 400_000, 3
    counter = Counter()
    download({path: remote}, connections=4, progress=counter)
    assert path.read_bytes() == content and counter.done == {NAME: SIZE}
    assert first_bytes(server) == [None] * 4 and server.cuts == 0


def test_requests_to_a_busy_server_are_repeated(server, content, tmp_path):
    remote = ask(f"{server.url}/{NAME}")
    server.statuses = [503, 429, 500, 502, 504]
    download({tmp_path / NAME: remote}, connections=1, progress=Counter())
    assert (tmp_path / NAME).read_bytes() == content


def test_a_failing_server_ends_the_download_and_keeps_the_received_bytes(server, tmp_path):
    remote = ask(f"{server.url}/{NAME}")
    server.cut_after, server.cuts = 0, 10_000
    with pytest.raises(
        DataError, match="the last attempt failed with: .*(ended|Incomplete).* resumes the download"
    ):
        download({tmp_path / NAME: remote}, connections=2, progress=Counter())
    assert not (tmp_path / NAME).exists() and (tmp_path / f"{NAME}.part").exists()


def test_an_unreachable_server_gives_one_clear_error(server):
    url = server.url
    with running(FileServer()) as gone:
        url = gone.url
    with pytest.raises(DataError, match="the last attempt failed with: .*refused"):
        ask(f"{url}/{NAME}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {}}, "404 Not Found"),
        ({"statuses": [403]}, "403 Forbidden"),
        ({"ranges": False, "says_size": False}, "does not state the size"),
    ],
)
def test_a_response_without_the_file_gives_one_clear_error(server, change, message):
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(DataError, match=message):
        ask(f"{server.url}/{NAME}")
    assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/a.zip", "a.zip", "http:///a.zip"])
def test_only_http_addresses_are_accepted(url):
    with pytest.raises(DataError, match="not an http or https address"):
        ask(url)


def test_a_file_that_changes_during_the_download_gives_one_clear_error(server, content, tmp_path):
    remote = ask(f"{server.url}/{NAME}")
    server.files[NAME] = content + b"more"
    with pytest.raises(
        DataError, match="changed on its server during the download, from 1000003 bytes to 1000007"
    ):
        download({tmp_path / NAME: remote}, connections=1, progress=Counter())


def test_a_full_disk_is_not_reported_as_a_broken_connection(server, tmp_path, monkeypatch):
    remote = ask(f"{server.url}/{NAME}")

    class Full:
        def __init__(self, file) -> None:
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error) -> None:
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, block):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer, "open", lambda *arguments: Full(open(*arguments)), raising=False)
    with pytest.raises(DataError, match=f"the disk of {tmp_path} is full; .* resumes"):
        download({tmp_path / NAME: remote}, connections=2, progress=Counter())


def test_an_interrupt_ends_the_other_connections_and_keeps_their_chunks(server, content, tmp_path):
    path, remote = tmp_path / NAME, ask(f"{server.url}/{NAME}")
    seen = 0

    def progress(what, total, done):
        def tick(n):
            nonlocal seen
            seen += n
            if seen > 3 * CHUNK:
                raise KeyboardInterrupt

        return tick

    with pytest.raises(KeyboardInterrupt):
        download({path: remote}, connections=1, progress=progress)
    assert json.loads((tmp_path / f"{NAME}.part.json").read_bytes())["done"] == [0, 1, 2]
    assert received(path, remote) == 3 * CHUNK
