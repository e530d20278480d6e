"""Calls W&B with a time limit, and ends its process if it hangs."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

# Longest time of a call in seconds; W&B itself allows sixty for an upload at the end.
PATIENCE = 90.0


class TimedCalls:
    """Makes calls in another thread, one after the other, with a time limit for each call."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], Future]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def do(self, call: Callable[[], None]) -> None:
        """Make the call.

        Raises:
            TimeoutError: the call has not returned in time; it continues in its thread.
            Exception: raised by the call.
        """
        if self._thread is None:
            # A daemon: a call that never returns must not keep the process alive.
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        done: Future = Future()
        self._calls.put((call, done))
        try:
            done.result(PATIENCE)
        except TimeoutError:
            raise TimeoutError(f"no answer in {PATIENCE:g} s") from None

    def _work(self) -> None:
        while True:
            call, done = self._calls.get()
            try:
                call()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)


def kill_service() -> None:
    """Kill W&B's process; otherwise this process would wait for it at its end."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            name, rest = path.read_text().rsplit(")", 1)
            if int(rest.split()[1]) == os.getpid() and "wandb" in name:
                os.kill(int(path.parent.name), signal.SIGKILL)
