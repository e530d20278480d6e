"""A child process that is stopped, with all its own children, by every signal that stops this process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import IO

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 600.0  # a run may have to finish an evaluation before it saves


def start(command: Sequence[str], output: IO[str]) -> subprocess.Popen:
    """Start a command in its own process group; standard output and errors go to ``output``."""
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, process_group=0
    )


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does. Ignored signals stay ignored, as under ``nohup``."""
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # ``timeout`` sends its signal twice, to the process and to its group. Only Ctrl-C can stop the stopping.
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def stop(process: subprocess.Popen, announce: Callable[[], None] = lambda: None) -> None:
    """End a process of ``start`` and its children. SIGTERM lets runs save a checkpoint; Ctrl-C meanwhile ends them without saving.

    Args:
        announce: tells the user about it. Ctrl-C may also arrive here.
    """
    try:
        announce()
        _end_group(process, signal.SIGTERM)
    except KeyboardInterrupt:
        _end_group(process, signal.SIGKILL)


def _end_group(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
        process.wait()
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            # A worker of joblib that has saved its run waits for another one.
            os.killpg(process.pid, number)
            time.sleep(POLL_SECONDS)
