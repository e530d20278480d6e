"""Write files so that they are either complete or absent, and detect damage when they are read again.

A writer fills a temporary file in the same folder and renames it when it is complete.  It holds a lock on the temporary
file.  The system releases the lock when the process ends, so an unlocked temporary file belongs to a dead writer; the next
writer of the same path removes it.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from datasets.errors import WriteError, reason

YOUNG_SECONDS = 10.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# A checked file ends with this mark and the SHA-256 of everything before the mark.
_MARK = b"AFL-SHA256-1\n\0\0\0"
_TRAILER = len(_MARK) + hashlib.sha256().digest_size


class DamagedFile(ValueError):
    """A checked file is incomplete or was changed after it was written."""


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Write a file under a temporary name in the same folder, flush it to disk, then rename it to ``path``.

    The folder is created if necessary.  After any error, including an interrupt, the old file is unchanged and the
    temporary file is removed.

    Raises:
        WriteError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(error.errno, error.strerror, str(path)) from error
    remove_abandoned(path)
    try:
        with open(temporary, "xb") as file:
            _lock_if_possible(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
            # The lock is held until the file has its name: a locked file is never taken for abandoned.
            os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            raise WriteError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder next to ``path``, then rename it to ``path``.

    If another process finishes the same folder first, its result stays and this one is removed.  The content must
    therefore depend only on the name.

    Raises:
        OSError: the folder cannot be written; the message names the settings.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise OSError(
            f"{path} cannot be generated ({reason(error)}); set paths.cache or dataset.root to a folder that you can write"
        ) from error
    handle = os.open(temporary, os.O_RDONLY)
    try:
        _lock_if_possible(handle)
        yield temporary
        temporary.chmod(0o755)
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` with ``atomic_file``."""
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text with ``atomic_file``."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON with an indent of 2 with ``atomic_file``; keys keep their order.

    Raises:
        ValueError: a number is not finite, or a text contains a lone surrogate.
        TypeError: a value has no JSON form.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def arrays_as_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Content of an uncompressed ``.npz`` file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle
    return buffer.getvalue()


def write_checked(path: str | Path, data: bytes) -> None:
    """Write ``data`` and its checksum, for ``read_checked``, with ``atomic_file``."""
    with atomic_file(path) as file:
        file.write(data)
        file.write(_MARK + hashlib.sha256(data).digest())


def read_checked(path: str | Path) -> bytes:
    """The data that ``write_checked`` wrote.

    Raises:
        DamagedFile: the checksum is missing or does not match.
        OSError: the file cannot be read.
    """
    content = Path(path).read_bytes()
    data, mark, digest = (
        content[:-_TRAILER],
        content[-_TRAILER : -_TRAILER + len(_MARK)],
        content[-_TRAILER:][len(_MARK) :],
    )
    if mark != _MARK or hashlib.sha256(data).digest() != digest:
        raise DamagedFile(f"{path} is damaged: its checksum does not match")
    return data


def try_lock(handle: int) -> bool:
    """Take an exclusive lock on an open file or folder without waiting.

    The lock ends with the process, however it ends.

    Returns:
        False if another process holds the lock.

    Raises:
        NoLocks: the file system does not support locks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise NoLocks(error.errno, error.strerror) from error
        raise
    return True


class NoLocks(OSError):
    """The file system does not support locks."""


def remove_abandoned(path: Path) -> None:
    """Remove temporary files of ``path`` whose writers are dead; those of running writers stay."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        try:
            # A younger file may not be locked yet.
            if time.time() - temporary.stat().st_mtime < YOUNG_SECONDS:
                continue
            handle = os.open(temporary, os.O_RDONLY)
        except OSError:  # another process removed it first
            continue
        try:
            if not try_lock(handle):
                continue
        except OSError:  # without locks, a running writer cannot be told from a dead one
            continue
        else:
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)
        finally:
            os.close(handle)


def files_below(folder: Path, above: frozenset[str] = frozenset()) -> list[Path]:
    """Everything but folders in a folder and its subfolders, ordered by path.

    Hidden files and folders, whose names begin with a dot, are left out: other programs keep copies there (``.ipynb_checkpoints``,
    ``._photo.jpg``, ``.Trash``). Links to folders are followed, but not a link to a folder that contains it. ``Path.rglob`` follows no links to folders.

    Args:
        above: resolved paths of the folders that contain this one.

    Raises:
        OSError: a folder cannot be read.
    """
    own = os.path.realpath(folder)
    if own in above:
        return []
    found: list[Path] = []
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        found += files_below(path, above | {own}) if path.is_dir() else [path]
    return sorted(found)


def remove_leftovers(folder: str | Path) -> None:
    """Remove all temporary files from a folder that no other process writes to."""
    for path in Path(folder).glob(".*.tmp"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that new names survive a power cut, where the file system supports it."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _lock_if_possible(handle: int) -> None:
    with suppress(OSError):
        try_lock(handle)
