"""Requests for a range of a file over HTTP, on ``requests`` and ``urllib3``.  RFC 9110, section 14."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema
from urllib3.exceptions import MaxRetryError
from urllib3.util import Retry

from datasets.errors import DataError

TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 6  # in a row without a byte
FIRST_ATTEMPTS = 3  # to reach a server at all
PAUSE = 1.0  # seconds; the pause before the third attempt is twice as long and doubles for each later one
LONGEST_PAUSE = 30.0
# Requests with another error status will not succeed later.
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


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
        DataError: the server does not have the file, does not state its size, or cannot be reached.
    """
    with session_with_retries(FIRST_ATTEMPTS) as session, answer(session, url, 0, 1) as response:
        ranges = response.status_code == 206
        length = total_size(response) if ranges else response.headers.get("Content-Length")
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    if length is None or not length.isdigit():
        raise DataError(f"{url}: the server does not state the size of the file; use another mirror")
    return RemoteFile(url, int(length), ranges, sha256 or version)


def session_with_retries(attempts: int, connections: int = 1) -> requests.Session:
    """A session that repeats requests without an answer or with a temporary error status."""
    session = requests.Session()
    session.headers.update({"User-Agent": "afl-detection", "Accept-Encoding": "identity"})
    adapter = HTTPAdapter(pool_maxsize=connections, max_retries=retries(attempts))
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    return session


def retries(attempts: int) -> Retry:
    return Retry(
        total=attempts - 1,
        backoff_factor=PAUSE,
        backoff_max=LONGEST_PAUSE,
        status_forcelist=_TEMPORARY,
        respect_retry_after_header=False,  # a server could ask for hours
    )


@contextlib.contextmanager
def answer(
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
        raise last_attempt_failed(url, error) from error
    with response:
        if not response.ok:
            raise DataError(
                f"{url} cannot be downloaded: the server answers {response.status_code} {response.reason}; use "
                "another mirror=URL, or download it by hand"
            )
        yield response


def total_size(response: requests.Response) -> str | None:
    """Size of the whole file, from an answer with a range of it."""
    found = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
    return found[1] if found else None


def last_attempt_failed(url: str, error: Exception) -> DataError:
    """The error to raise after the last attempt."""
    reason = error if isinstance(error, MaxRetryError) or not error.args else error.args[0]
    reason = getattr(reason, "reason", None) or reason
    return DataError(
        f"{url} cannot be downloaded: the last attempt failed with: {reason}; check the network or use mirror=URL, "
        "then run the same command again, which resumes the download"
    )
