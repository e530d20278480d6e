"""Progress of downloads: bars in a terminal, otherwise a line of text from time to time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from datasets.download import Progress as StartLine
from datasets.download import Tick
from datasets.errors import printable

PLAIN_LINE_EVERY = 15.0  # seconds


@contextmanager
def transfer_progress(console: Console) -> Iterator[tuple[StartLine, Callable[[str], None]]]:
    """A function that opens a progress line (name, total bytes, bytes done), and one that prints a message."""
    if not console.is_terminal:
        yield _plain_line, _print_now
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:

        def start(name: str, total: int, done: int) -> Tick:
            task = bars.add_task(name, total=total, completed=done)
            return lambda n: bars.advance(task, n)

        yield (
            start,
            lambda message: bars.console.print(
                printable(message), highlight=False, markup=False, soft_wrap=True
            ),
        )


def _print_now(message: str) -> None:
    print(printable(message), flush=True)


def _plain_line(name: str, total: int, done: int) -> Tick:
    lock = threading.Lock()
    first, began = done, time.monotonic()
    last = began

    def tick(n: int) -> None:
        nonlocal done, last
        with lock:
            done += n
            now = time.monotonic()
            if now - last < PLAIN_LINE_EVERY:
                return
            last = now
            speed = (done - first) / (now - began)
            left = f", {(total - done) / speed / 60:.0f} min left" if speed > 0 else ""
            _print_now(
                f"{name}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB ({done / max(1, total):.0%}), "
                f"{speed / 1e6:.1f} MB/s{left}"
            )

    return tick
