"""One process per run directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class RunBusy(RuntimeError):
    """Another process is working on the same run."""


@contextlib.contextmanager
def run_lock(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold the run directory for this process.

    The lock belongs to the process, not to a file's existence: when its owner dies, however it dies, the lock is gone,
    so there are no stale ones.

    Args:
        wait: wait for the other process instead of leaving.

    Raises:
        RunBusy: another process holds it and ``wait`` is false.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise RunBusy(f"{folder.name} is being run by {owner}; nothing was done here") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield
