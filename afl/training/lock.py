"""Ensures that only one process works in a run directory."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from datasets.errors import reason
from datasets.files import NoLocks, try_lock

LOCK = ".lock"
PAUSE_SECONDS = 0.5
# Loader processes notice within five seconds that the process that started them has died.
ORPHANS_SECONDS = 30.0
log = logging.getLogger(__name__)


class RunBusy(RuntimeError):
    """Another process is working on the same run."""


@contextlib.contextmanager
def run_lock(folder: Path, *, wait: bool, while_waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock on the run directory. The folder is created, and removed at the end if it is empty.

    The system releases the lock when the process ends for any reason, so a lock is never stale. Loader processes may outlive
    their parent by a few seconds and still hold its lock; this function waits for them. On a file system without locks, a
    warning is logged, and the run proceeds without a lock.

    Args:
        wait: wait for the other process instead of raising an error.
        while_waiting: called twice a second while waiting.

    Raises:
        RunBusy: another process holds the lock and ``wait`` is false.
        OSError: the folder cannot be written.
    """
    told = False
    deadline = time.monotonic() + ORPHANS_SECONDS
    while True:
        file, taken = _opened(folder)
        with file:
            if taken:
                file.truncate(0)
                file.write(_name(os.getpid()))
                file.flush()
                try:
                    yield
                finally:
                    _remove_if_empty(folder)
                return
            file.seek(0)
            owner = file.read().strip() or "another process"
        if not wait and not (_is_dead(owner) and time.monotonic() < deadline):
            raise RunBusy(f"{folder.name} is being run by {owner}; this process leaves it unchanged")
        if not told:
            log.info("%s is being run by %s; waiting for it", folder.name, owner)
            told = True
        while_waiting()
        time.sleep(PAUSE_SECONDS)


def _not_writable(folder: Path, error: OSError) -> OSError:
    return OSError(
        f"the run directory {folder} cannot be written ({reason(error)}); set paths.output to a folder that you can write"
    )


def _opened(folder: Path) -> tuple[TextIO, bool]:
    """The open lock file of ``folder``, and whether this process holds its lock now."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_writable(folder, error) from error
        try:
            file = open(folder / LOCK, "a+", encoding="utf-8")
        except FileNotFoundError:  # another process has just removed the empty folder
            continue
        except OSError as error:
            raise _not_writable(folder, error) from error
        try:
            if not try_lock(file.fileno()):
                return file, False
            # The previous owner may have removed the file, so that another file has this name now.
            if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK)):
                return file, True
            file.close()
        except NoLocks as error:
            log.warning(
                "the file system of %s does not support locks (%s): make sure that only one process works on a run",
                folder,
                reason(error),
            )
            return file, True
        except FileNotFoundError:
            file.close()
        except BaseException:
            file.close()
            raise


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        if os.listdir(folder) == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


def _name(process: int) -> str:
    return f"process {process} on {os.uname().nodename}"


def _is_dead(owner: str) -> bool:
    """Whether the process is known to have ended; False for processes on other machines."""
    found = re.match(r"process (\d+) on ", owner)
    if not found or owner != _name(int(found[1])):
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # a process of another user
        return False
    return False
