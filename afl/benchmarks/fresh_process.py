"""Runs work in a fresh process and measures its time and memory. This module imports little, so that the process starts quickly."""

from __future__ import annotations

import contextlib
import gc
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import TerminatedWorkerError

Result = TypeVar("Result")


def in_a_process(work: Callable[..., Result], data: tuple) -> tuple[Result, float, int]:
    """Result, seconds, and largest growth of the process in bytes, of ``work(*data)`` in a fresh process.

    A forked process would inherit hotcoco without its threads and hang.

    Raises:
        RuntimeError: the process ended without a result.
    """
    with ProcessPoolExecutor(1) as executor:
        try:
            return executor.submit(measured, work, data).result()
        except TerminatedWorkerError:
            raise RuntimeError(f"{work.__name__} ended without a result; was there enough memory?") from None


def measured(work: Callable[..., Result], data: tuple) -> tuple[Result, float, int]:
    """``in_a_process`` within this process. What ``work`` prints is dropped."""
    gc.collect()
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    before = _memory("VmRSS")
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        result = work(*data)
    seconds = time.perf_counter() - started
    return result, seconds, _memory("VmHWM") - before


def _memory(field: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
