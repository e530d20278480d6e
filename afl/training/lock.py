"""One process per run directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

PAUSE_SECONDS = 0.5
# Loader processes notice within five seconds that the one that started them is dead.
ORPHANS_SECONDS = 30.0
log = logging.getLogger(__name__)


class RunBusy(RuntimeError):
    """Another process is working on the same run."""


@contextlib.contextmanager
def run_lock(folder: Path, *, wait: bool, while_waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the run directory for this process.

    The lock belongs to the process, not to a file's existence: when its owner dies, however it dies, the lock is gone,
    so there are no stale ones.  Only the owner's loader processes may outlive it by seconds; they are waited for.  Where
    the file system keeps no locks, a warning says so and the run goes on without one.

    Args:
        wait: wait for the other process instead of leaving.
        while_waiting: called twice a second meanwhile.

    Raises:
        RunBusy: another process holds it and ``wait`` is false.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        said = False
        given_up = time.monotonic() + ORPHANS_SECONDS
        while not _taken(file, folder):
            file.seek(0)
            owner = file.read().strip() or "another process"
            if not wait and not (_is_dead(owner) and time.monotonic() < given_up):
                raise RunBusy(f"{folder.name} is being run by {owner}; nothing was done here")
            if not said:
                log.info("%s is being run by %s; waiting for it", folder.name, owner)
                said = True
            while_waiting()
            time.sleep(PAUSE_SECONDS)
        file.truncate(0)
        file.write(_name(os.getpid()))
        file.flush()
        yield


def _name(process: int) -> str:
    return f"process {process} on {os.uname().nodename}"


def _is_dead(owner: str) -> bool:
    """Whether a process of this machine is known to have ended; of other machines nothing is known."""
    found = re.match(r"process (\d+) on ", owner)
    if not found or owner != _name(int(found[1])):
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's
        return False
    return False


def _taken(file: TextIO, folder: Path) -> bool:
    try:
        # Not a waiting call: that would go on through every signal.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        log.warning(
            "the file system of %s keeps no locks (%s): see to it that only one process works on a run",
            folder,
            error,
        )
    return True
