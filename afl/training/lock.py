"""One process per run directory."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

PAUSE_SECONDS = 0.5
log = logging.getLogger(__name__)


class RunBusy(RuntimeError):
    """Another process is working on the same run."""


@contextlib.contextmanager
def run_lock(folder: Path, *, wait: bool, while_waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the run directory for this process.

    The lock belongs to the process, not to a file's existence: when its owner dies, however it dies, the lock is gone,
    so there are no stale ones.

    Args:
        wait: wait for the other process instead of leaving.
        while_waiting: called twice a second meanwhile.

    Raises:
        RunBusy: another process holds it and ``wait`` is false.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        said = False
        while not _taken(file):
            file.seek(0)
            owner = file.read().strip() or "another process"
            if not wait:
                raise RunBusy(f"{folder.name} is being run by {owner}; nothing was done here")
            if not said:
                log.info("%s is being run by %s; waiting for it", folder.name, owner)
                said = True
            while_waiting()
            time.sleep(PAUSE_SECONDS)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def _taken(file: TextIO) -> bool:
    try:
        # Not a waiting call: that would go on through every signal.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
